/**
 * The Prometheus text, read by a strict parser of our own: well-formed, complete, and the values that
 * were counted.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TrafficCounters, WorkerCounters } from '../../src/telemetry/counters.ts'
import { createExposition } from '../../src/telemetry/exposition.ts'
import type { HostReading } from '../../src/telemetry/host-reading.ts'
import { metrics, type Reading } from '../../src/telemetry/metrics.ts'
import { MetricsReader, type MetricsSource } from '../../src/telemetry/metrics-reader.ts'
import { MAX_NODE_PAIRS, WorkerTotals } from '../../src/telemetry/totals.ts'
import { quietHost } from './telemetry-fixtures.ts'

interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

interface Family {
  readonly name: string
  readonly help: string
  readonly type: string
  readonly samples: Sample[]
}

/**
 * Prometheus' text format 0.0.4, strictly: HELP, TYPE, then the samples of that family alone; no family,
 * sample or label twice; histograms complete and cumulative. Throws at the first line that is not so.
 */
function parseExposition(text: string): Map<string, Family> {
  assert.ok(text.endsWith('\n'), 'the text must end with a newline')
  const families = new Map<string, Family>()
  let current: Family | undefined
  let help: { name: string; text: string } | undefined
  const seen = new Set<string>()
  for (const line of text.slice(0, -1).split('\n')) {
    const helpLine = /^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/.exec(line)
    const typeLine = /^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)$/.exec(line)
    if (helpLine !== null) {
      assert.equal(help, undefined, `HELP after HELP: ${line}`)
      help = { name: helpLine[1]!, text: helpLine[2]! }
    } else if (typeLine !== null) {
      assert.equal(help?.name, typeLine[1], `TYPE without its HELP: ${line}`)
      assert.ok(!families.has(typeLine[1]!), `family twice: ${line}`)
      current = { name: typeLine[1]!, type: typeLine[2]!, help: help!.text, samples: [] }
      families.set(current.name, current)
      help = undefined
    } else {
      const sample = parseSample(line)
      assert.ok(current !== undefined && help === undefined, `sample outside a family: ${line}`)
      const suffixes = current.type === 'histogram' ? ['_bucket', '_sum', '_count'] : ['']
      assert.ok(
        suffixes.some((suffix) => sample.name === `${current!.name}${suffix}`),
        `sample of another family: ${line}`,
      )
      const key = `${sample.name}${JSON.stringify(Object.entries(sample.labels).map(String).toSorted())}`
      assert.ok(!seen.has(key), `sample twice: ${line}`)
      seen.add(key)
      current.samples.push(sample)
    }
  }
  for (const family of families.values()) if (family.type === 'histogram') checkHistogram(family)
  return families
}

function parseSample(line: string): Sample {
  const match =
    /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (-?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?))$/.exec(line)
  assert.ok(match !== null, `not a sample: ${line}`)
  const labels: Record<string, string> = {}
  let rest = match[2] ?? ''
  while (rest !== '') {
    const label = /^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(,|$)/.exec(rest)
    assert.ok(label !== null, `not a label list: ${line}`)
    assert.ok(!Object.hasOwn(labels, label[1]!), `label twice: ${line}`)
    labels[label[1]!] = label[2]!.replaceAll(/\\(["\\n])/g, (_whole, character: string) =>
      character === 'n' ? '\n' : character,
    )
    rest = rest.slice(label[0].length)
  }
  return { name: match[1]!, labels, value: Number(match[3]) }
}

function checkHistogram(family: Family): void {
  const series = Map.groupBy(family.samples, ({ labels }) => {
    const { le: _le, ...rest } = labels
    return JSON.stringify(rest)
  })
  for (const samples of series.values()) {
    const buckets = samples.filter(({ name }) => name.endsWith('_bucket'))
    const bounds = buckets.map(({ labels }) =>
      labels['le'] === '+Inf' ? Infinity : Number(labels['le']),
    )
    assert.deepEqual(
      bounds,
      bounds.toSorted((a, b) => a - b),
      `${family.name}: buckets in order`,
    )
    assert.equal(bounds.at(-1), Infinity, `${family.name}: +Inf is last`)
    buckets.reduce((before, bucket) => {
      assert.ok(bucket.value >= before, `${family.name}: buckets are cumulative`)
      return bucket.value
    }, 0)
    const count = samples.find(({ name }) => name.endsWith('_count'))
    assert.equal(count?.value, buckets.at(-1)?.value, `${family.name}: _count is the +Inf bucket`)
    assert.ok(samples.some(({ name }) => name.endsWith('_sum')))
  }
}

function source(totals: WorkerTotals, host: Partial<HostReading> = {}): () => Reading {
  return readingOf({ version: '1.2.3', totals, host: () => ({ ...quietHost, ...host }) })
}

function readingOf(from: MetricsSource): () => Reading {
  const reader = new MetricsReader(from)
  return () => reader.read()
}

function value(
  families: Map<string, Family>,
  sampleName: string,
  labels: Readonly<Record<string, string>> = {},
): number | undefined {
  for (const family of families.values()) {
    const found = family.samples.find(
      (sample) =>
        sample.name === sampleName &&
        Object.entries(labels).every(([name, wanted]) => sample.labels[name] === wanted),
    )
    if (found !== undefined) return found.value
  }
  return undefined
}

test('the strict parser of this file refuses text that Prometheus would refuse or misread', () => {
  const good = '# HELP a_total A\n# TYPE a_total counter\na_total{x="1"} 2\n'
  assert.equal(value(parseExposition(good), 'a_total', { x: '1' }), 2)
  for (const bad of [
    good.slice(0, -1),
    good.replace('} 2', '} two'),
    good.replace('x="1"', 'x="1'),
    good.replace('x="1"', 'x="1",x="2"'),
    `${good}a_total{x="1"} 3\n`,
    good.replace('# TYPE a_total counter\n', ''),
    `${good}b_total 1\n`,
    good + good,
    '# HELP h H\n# TYPE h histogram\nh_bucket{le="1"} 2\nh_bucket{le="+Inf"} 1\nh_sum 1\nh_count 1\n',
    '# HELP h H\n# TYPE h histogram\nh_bucket{le="1"} 1\nh_sum 1\nh_count 1\n',
  ])
    assert.throws(() => parseExposition(bad), assert.AssertionError, bad)
})

test('every metric of the table is in the text, with its type, its help and no other labels', async () => {
  const totals = new WorkerTotals()
  const memory = totals.attach(0)
  const traffic = new TrafficCounters(memory.traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  traffic.opened(traffic.row('source', 'web', 'db'))
  const text = await createExposition(
    source(totals, {
      problems: new Map([['HM_HOST_NOT_READY', 1]]),
      catalogLastSuccessMs: 1,
      state: { parts: [{ part: 'services', remembered: 1 }], problems: [] },
      consulLastContactMs: 1,
      captureInSync: true,
      dnsQueries: { answered: 1, noName: 0 },
      captureRepairs: 3,
      unknownCallersRefused: { virtual: 3, instance: 4 },
      captureCounts: { permitted: 5, waited: 6, full: 7, guarded: 8, spared: 9 },
      plainInbound: 10,
      reports: [
        { aggregator: 'hostmesh-aggregator', waiting: 2, dropped: 1, lastSuccessMs: 1_000 },
      ],
      otlp: { requests: { accepted: 1, failed: 2, refused: 3 }, rejectedPoints: 4 },
      certificates: [{ service: 'web', notAfterMs: 1 }],
    }),
  ).metrics()
  const families = parseExposition(text)
  assert.deepEqual([...families.keys()].toSorted(), metrics.map(({ name }) => name).toSorted())
  for (const definition of metrics) {
    const family = families.get(definition.name)
    assert.equal(family?.type, definition.type)
    assert.equal(family.help, definition.help)
    assert.ok(family.samples.length > 0, `${definition.name} has a sample`)
    for (const { labels } of family.samples) {
      const names = Object.keys(labels).filter((name) => name !== 'le')
      assert.deepEqual(names, [...definition.labels], definition.name)
    }
  }
})

test('metric names follow the rules: prefix, base units, _total on counters and only there', () => {
  for (const { name, type } of metrics) {
    assert.match(name, /^hostmesh_[a-z]+(_[a-z]+)*$/)
    assert.equal(name.endsWith('_total'), type === 'counter', name)
    assert.doesNotMatch(name, /_(ms|milliseconds|kib|kb|percent)(_|$)/)
  }
})

test('counts appear under the labels they were counted with', async () => {
  const totals = new WorkerTotals()
  const memory = totals.attach(0)
  const traffic = new TrafficCounters(memory.traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  const worker = new WorkerCounters(memory.counters)
  const row = traffic.row('destination', 'web', 'db')
  for (let i = 0; i < 4; i += 1) traffic.opened(row)
  traffic.closed(row, 'DENY', 2)
  traffic.closed(row, '-', 200)
  traffic.closed(row, '-', 1e9)
  traffic.sent(row, 1_000)
  traffic.received(row, 2 ** 52)
  traffic.connectFailed(row)
  traffic.connected(row, 0.01)
  traffic.connected(row, 250)
  traffic.connected(row, 251)
  traffic.answered(row, 33_000)
  traffic.answered(row, 1e6)
  worker.inc('tunnelHandshakeFailures', 3)
  worker.inc('logLinesLost', 2)
  worker.inc('accessLinesLimited', 6)
  worker.inc('accessLinesLost', 7)
  worker.set('tunnelSessionsActive', 2)
  worker.set('eventLoopDelayMs', 250)
  worker.roundTrip(3)
  const families = parseExposition(
    await createExposition(
      source(totals, {
        ready: true,
        serving: true,
        problems: new Map([['HM_CONFIG_INVALID', 2]]),
        snapshotVersion: 17,
        catalogLastSuccessMs: 1_700_000_000_500,
        state: {
          parts: [
            { part: 'services', remembered: 3 },
            { part: 'policies', remembered: 0 },
          ],
          problems: ['full'],
        },
        consulLastContactMs: 1_500,
        captureInSync: false,
        dnsQueries: { answered: 6, notImplemented: 7 },
        watchedServices: 8,
        certificates: [{ service: 'db', notAfterMs: 1_700_000_000_000 }],
        workersRunning: 2,
        workerRestarts: 1,
        logLinesLost: 3,
        accessLinesLost: 4,
        eventLoopLagMs: 5,
      }),
    ).metrics(),
  )
  const pair = { reporter: 'destination', source_service: 'web', destination_service: 'db' }
  const expected: [string, Record<string, string>, number][] = [
    ['hostmesh_dns_queries_total', { outcome: 'answered' }, 6],
    ['hostmesh_dns_queries_total', { outcome: 'not_implemented' }, 7],
    ['hostmesh_watched_services', {}, 8],
    ['hostmesh_log_lines_lost_total', {}, 5],
    ['hostmesh_access_log_lines_lost_total', { reason: 'limit' }, 6],
    ['hostmesh_access_log_lines_lost_total', { reason: 'slow' }, 7],
    ['hostmesh_access_log_lines_lost_total', { reason: 'failed' }, 4],
    ['hostmesh_tcp_connections_opened_total', pair, 4],
    ['hostmesh_tcp_connections_closed_total', { ...pair, response_flags: '-' }, 2],
    ['hostmesh_tcp_connections_closed_total', { ...pair, response_flags: 'DENY' }, 1],
    ['hostmesh_tcp_connections_active', pair, 1],
    ['hostmesh_tcp_connections_lost_total', pair, 0],
    ['hostmesh_tcp_connect_failures_total', pair, 1],
    ['hostmesh_tcp_sent_bytes_total', pair, 1_000],
    ['hostmesh_tcp_received_bytes_total', pair, 2 ** 52],
    ['hostmesh_tcp_connection_duration_seconds_bucket', { ...pair, le: '0.005' }, 1],
    ['hostmesh_tcp_connection_duration_seconds_bucket', { ...pair, le: '0.5' }, 2],
    ['hostmesh_tcp_connection_duration_seconds_bucket', { ...pair, le: '+Inf' }, 3],
    ['hostmesh_tcp_connection_duration_seconds_sum', pair, 1_000_000.202],
    ['hostmesh_tcp_connect_duration_seconds_bucket', { ...pair, le: '0.0001220703125' }, 1],
    ['hostmesh_tcp_connect_duration_seconds_bucket', { ...pair, le: '0.125' }, 1],
    ['hostmesh_tcp_connect_duration_seconds_bucket', { ...pair, le: '0.25' }, 2],
    ['hostmesh_tcp_connect_duration_seconds_bucket', { ...pair, le: '0.5' }, 3],
    ['hostmesh_tcp_connect_duration_seconds_bucket', { ...pair, le: '+Inf' }, 3],
    ['hostmesh_tcp_connect_duration_seconds_sum', pair, 0.501_01],
    ['hostmesh_tcp_first_byte_seconds_bucket', { ...pair, le: '32' }, 0],
    ['hostmesh_tcp_first_byte_seconds_bucket', { ...pair, le: '+Inf' }, 2],
    ['hostmesh_tcp_first_byte_seconds_count', pair, 2],
    ['hostmesh_tunnel_handshake_failures_total', {}, 3],
    ['hostmesh_tunnel_sessions_active', {}, 2],
    ['hostmesh_tunnel_rtt_seconds_bucket', { le: '0.005' }, 1],
    ['hostmesh_tunnel_rtt_seconds_bucket', { le: '0.002' }, 0],
    ['hostmesh_event_loop_lag_seconds', { thread: 'main' }, 0.005],
    ['hostmesh_event_loop_lag_seconds', { thread: '0' }, 0.25],
    ['hostmesh_certificate_expiry_timestamp_seconds', { service: 'db' }, 1_700_000_000],
    ['hostmesh_catalog_last_success_timestamp_seconds', {}, 1_700_000_000.5],
    ['hostmesh_state_remembered', { part: 'services' }, 3],
    ['hostmesh_state_remembered', { part: 'policies' }, 0],
    ['hostmesh_state_problems', {}, 1],
    ['hostmesh_consul_last_contact_seconds', {}, 1.5],
    ['hostmesh_snapshot_version', {}, 17],
    ['hostmesh_capture_rules_in_sync', {}, 0],
    ['hostmesh_ready', {}, 1],
    ['hostmesh_serving', {}, 1],
    ['hostmesh_problems', { code: 'HM_CONFIG_INVALID' }, 2],
    ['hostmesh_workers', {}, 2],
    ['hostmesh_worker_restarts_total', {}, 1],
    ['hostmesh_build_info', { version: '1.2.3', node_version: process.version }, 1],
  ]
  for (const [name, labels, wanted] of expected)
    assert.equal(value(families, name, labels), wanted, `${name} ${JSON.stringify(labels)}`)
  const { samples = [] } = families.get('hostmesh_tcp_first_byte_seconds') ?? {}
  const bounds = samples.flatMap(({ labels }) => labels['le'] ?? [])
  assert.deepEqual(bounds, [...Array.from({ length: 19 }, (_, i) => String(2 ** (i - 13))), '+Inf'])
  assert.equal(
    value(families, 'hostmesh_tcp_connections_closed_total', { ...pair, response_flags: 'UF' }),
    undefined,
    'a flag that never happened has no series',
  )
  for (const name of [
    'cpu_seconds_total',
    'resident_memory_bytes',
    'open_fds',
    'start_time_seconds',
  ])
    assert.ok((value(families, `hostmesh_process_${name}`) ?? 0) > 0, name)
})

test('what is not known has no sample instead of a zero', async () => {
  const families = parseExposition(await createExposition(source(new WorkerTotals())).metrics())
  assert.deepEqual(families.get('hostmesh_catalog_last_success_timestamp_seconds')?.samples, [])
  assert.deepEqual(families.get('hostmesh_consul_last_contact_seconds')?.samples, [])
  assert.deepEqual(families.get('hostmesh_capture_rules_in_sync')?.samples, [])
  assert.equal(value(families, 'hostmesh_ready'), 0)
  assert.equal(value(families, 'hostmesh_serving'), 0)
  assert.deepEqual(families.get('hostmesh_problems')?.samples, [])
})

test('names with quotes, backslashes and newlines cannot break out of their label', async () => {
  const totals = new WorkerTotals()
  const memory = totals.attach(0)
  const traffic = new TrafficCounters(memory.traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  const hostile = 'a"} 1\nfake_total{x="\\'
  traffic.opened(traffic.row('source', hostile, 'db'))
  const families = parseExposition(await createExposition(source(totals)).metrics())
  assert.equal(
    value(families, 'hostmesh_tcp_connections_opened_total', { source_service: hostile }),
    1,
  )
})

test('hundreds of service pairs, rendered in slices, are one well-formed text with every pair', async () => {
  const totals = new WorkerTotals()
  const memory = totals.attach(0)
  const traffic = new TrafficCounters(memory.traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  const pairs = 300
  for (let i = 0; i < pairs; i += 1) traffic.closed(traffic.row('source', `s${i}`, 'db'), '-', 1)
  const families = parseExposition(await createExposition(source(totals)).metrics())
  assert.equal(families.get('hostmesh_tcp_connections_closed_total')?.samples.length, pairs)
  const buckets = families.get('hostmesh_tcp_connection_duration_seconds')?.samples
  assert.equal(buckets?.length, pairs * 16, 'more than a slice holds')
})

test('a scrape of the most service pairs of a host leaves room for others after each slice', async () => {
  const totals = new WorkerTotals()
  for (const id of [0, 1]) {
    const memory = totals.attach(id)
    const traffic = new TrafficCounters(memory.traffic, (row, labels) =>
      totals.announce(id, row, labels),
    )
    for (let i = 0; i < MAX_NODE_PAIRS / 2; i += 1)
      traffic.connected(traffic.row('source', `s${id}-${i}`, 'db'), 1)
  }
  let turns = 0
  let isOver = false
  const turn = (): void => {
    turns += 1
    if (!isOver) setImmediate(turn)
  }
  setImmediate(turn)
  const text = await createExposition(source(totals)).metrics()
  isOver = true
  const lines = text.split('\n').length
  assert.ok(lines > 60 * MAX_NODE_PAIRS, `${lines} lines`)
  assert.ok(turns >= lines / 1_000, `${turns} turns`)
})

test('scrapes that arrive during a scrape share its answer, later ones see new counts', async () => {
  const totals = new WorkerTotals()
  const worker = new WorkerCounters(totals.attach(0).counters)
  let readings = 0
  const exposition = createExposition(
    readingOf({
      version: '1',
      totals,
      host: () => {
        readings += 1
        return quietHost
      },
    }),
  )
  const texts = await Promise.all(Array.from({ length: 100 }, () => exposition.metrics()))
  assert.equal(readings, 1)
  assert.equal(new Set(texts).size, 1)
  worker.inc('overflow')
  const families = parseExposition(await exposition.metrics())
  assert.equal(value(families, 'hostmesh_overflow_total'), 1)
  assert.equal(readings, 2)
})

test('a scrape that fails does not fail the next one', async () => {
  let fails = true
  const exposition = createExposition(
    readingOf({
      version: '1',
      totals: new WorkerTotals(),
      host: () => {
        if (fails) throw new Error('not yet')
        return quietHost
      },
    }),
  )
  await assert.rejects(exposition.metrics(), /not yet/)
  fails = false
  parseExposition(await exposition.metrics())
})
