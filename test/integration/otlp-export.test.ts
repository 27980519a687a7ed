/**
 * Metrics by OTLP: what OpenTelemetry's own decoder reads from them, and what an endpoint can do to a host.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { test } from 'node:test'
import { gunzipSync } from 'node:zlib'
import generated from '@opentelemetry/otlp-transformer/build/src/generated/root.js'
import { closeServer, portOf, readBody } from '../../src/lib/json-http.ts'
import { silentLog } from '../../src/lib/log.ts'
import { TrafficCounters, trafficLayout } from '../../src/telemetry/counters.ts'
import { ExponentialBuckets } from '../../src/telemetry/exponential.ts'
import { metrics } from '../../src/telemetry/metrics.ts'
import { MetricsReader } from '../../src/telemetry/metrics-reader.ts'
import { MAX_BATCH_POINTS } from '../../src/telemetry/otlp/batch.ts'
import { OtlpExport, type OtlpExportOptions } from '../../src/telemetry/otlp/exporter.ts'
import { WorkerTotals } from '../../src/telemetry/totals.ts'
import { eventually } from '../harness/eventually.ts'
import { TestClock } from '../harness/test-clock.ts'
import { quietHost } from '../unit/telemetry-fixtures.ts'

const START_MS = Date.UTC(2026, 0, 1)
const INTERVAL_MS = 60_000

/** ExportMetricsServiceRequest as the library has it, 64-bit integers as numbers. */
interface Decoded {
  readonly resourceMetrics: readonly {
    readonly resource: { readonly attributes: readonly Attribute[] }
    readonly scopeMetrics: readonly {
      readonly scope: { readonly name: string; readonly version: string }
      readonly metrics: readonly DecodedMetric[]
    }[]
  }[]
}

interface Attribute {
  readonly key: string
  readonly value: { readonly stringValue: string }
}

interface Point {
  readonly attributes: readonly Attribute[]
  readonly startTimeUnixNano?: string
  readonly timeUnixNano: string
  readonly asDouble?: number
  readonly count?: string
  readonly sum?: number
  readonly scale?: number
  readonly bucketCounts?: readonly string[]
  readonly explicitBounds?: readonly number[]
  readonly positive?: { readonly offset: number; readonly bucketCounts: readonly string[] }
}

interface Points {
  readonly dataPoints: readonly Point[]
  readonly aggregationTemporality?: number
  readonly isMonotonic?: boolean
}

interface DecodedMetric {
  readonly name: string
  readonly description: string
  readonly unit: string
  readonly gauge?: Points
  readonly sum?: Points
  readonly histogram?: Points
  readonly exponentialHistogram?: Points
}

/** A class that protobufjs has generated. */
interface MessageClass {
  readonly decode: (body: Uint8Array) => object
  readonly fromObject: (json: unknown) => object
  readonly toObject: (message: object, options: { readonly longs: typeof String }) => unknown
  readonly verify: (message: object) => string | null
  readonly encode: (message: object) => { readonly finish: () => Uint8Array }
}

interface Generated {
  readonly opentelemetry: {
    readonly proto: {
      readonly collector: {
        readonly metrics: {
          readonly v1: Readonly<
            Record<'ExportMetricsServiceRequest' | 'ExportMetricsServiceResponse', MessageClass>
          >
        }
      }
    }
  }
}

const { ExportMetricsServiceRequest, ExportMetricsServiceResponse } = (
  generated as unknown as Generated
).opentelemetry.proto.collector.metrics.v1

/** By the code that the OpenTelemetry project generates from its definition. */
function decode(body: Buffer, contentType: string | undefined): Decoded {
  const message =
    contentType === 'application/json'
      ? ExportMetricsServiceRequest.fromObject(JSON.parse(body.toString('utf8')))
      : ExportMetricsServiceRequest.decode(body)
  const problem = ExportMetricsServiceRequest.verify(message)
  assert.equal(problem, null)
  return ExportMetricsServiceRequest.toObject(message, { longs: String }) as Decoded
}

type Answer = (response: ServerResponse, request: IncomingMessage) => void

interface Received {
  readonly path: string | undefined
  readonly headers: IncomingMessage['headers']
  readonly body: Buffer
}

const accept: Answer = (response) => {
  response.end()
}

/** A receiver that gives these answers in turn, and the last one from then on. */
async function receiver(...answers: readonly Answer[]) {
  const received: Received[] = []
  const server = createServer((request, response) => {
    void readBody(request, 64_000_000).then((body) => {
      received.push({ path: request.url, headers: request.headers, body: gunzipSync(body) })
      const answer = answers[Math.min(received.length, answers.length) - 1] ?? accept
      answer(response, request)
    })
  })
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  return {
    received,
    url: `http://127.0.0.1:${portOf(server)}`,
    [Symbol.asyncDispose]: () => closeServer(server),
  }
}

function counted() {
  const totals = new WorkerTotals()
  const traffic = new TrafficCounters(totals.attach(0).traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  return { totals, traffic }
}

/** An export that begins when `clock` passes 0 ms. */
function exportTo(
  url: string,
  { totals, ...options }: Partial<OtlpExportOptions> & { readonly totals: WorkerTotals },
): OtlpExport {
  const reader = new MetricsReader({ version: '1.2.3', totals, host: () => quietHost })
  return new OtlpExport({
    url,
    protocol: 'http/protobuf',
    headers: {},
    intervalMs: INTERVAL_MS,
    version: '1.2.3',
    startMs: START_MS,
    resource: () => ({ 'service.name': 'hostmesh', 'host.name': 'a' }),
    read: () => reader.read(),
    log: silentLog,
    random: () => 0,
    ...options,
  })
}

function metricIn(requests: readonly Decoded[], name: string): DecodedMetric | undefined {
  return requests
    .flatMap(({ resourceMetrics }) => resourceMetrics)
    .flatMap(({ scopeMetrics }) => scopeMetrics)
    .flatMap((scope) => scope.metrics)
    .find((metric) => metric.name === name)
}

const labelsOf = (point: Point | undefined): Record<string, string> =>
  Object.fromEntries((point?.attributes ?? []).map(({ key, value }) => [key, value.stringValue]))

for (const protocol of ['http/protobuf', 'http/json'] as const)
  test(`OpenTelemetry's own decoder reads what was counted (${protocol})`, async () => {
    const { totals, traffic } = counted()
    const row = traffic.row('source', 'web', 'db')
    for (let i = 0; i < 300; i += 1) traffic.opened(row)
    traffic.closed(row, 'UF', 700)
    traffic.sent(row, 2 ** 40)
    for (const ms of [1, 1.01, 250]) traffic.connected(row, ms)
    await using endpoint = await receiver()
    using _export = exportTo(endpoint.url, { totals, protocol })
    await eventually(() => assert.equal(endpoint.received.length, 1))
    const [request] = endpoint.received
    assert.equal(request?.path, '/v1/metrics')
    const decoded = decode(request.body, request.headers['content-type'])
    const [resource] = decoded.resourceMetrics
    assert.deepEqual(
      resource?.resource.attributes.map(({ key, value }) => [key, value.stringValue]),
      [
        ['service.name', 'hostmesh'],
        ['host.name', 'a'],
      ],
    )
    assert.equal(resource?.scopeMetrics[0]?.scope.name, 'hostmesh')
    assert.equal(resource?.scopeMetrics[0]?.scope.version, '1.2.3')

    const opened = metricIn([decoded], 'hostmesh_tcp_connections_opened_total')?.sum
    assert.equal(opened?.isMonotonic, true)
    assert.equal(opened.aggregationTemporality, 2)
    const [point] = opened.dataPoints
    assert.equal(point?.asDouble, 300)
    assert.equal(point.startTimeUnixNano, `${START_MS}000000`)
    assert.deepEqual(labelsOf(point), {
      reporter: 'source',
      source_service: 'web',
      destination_service: 'db',
    })
    const sent = metricIn([decoded], 'hostmesh_tcp_sent_bytes_total')
    assert.equal(sent?.unit, 'By')
    assert.equal(sent.sum?.dataPoints[0]?.asDouble, 2 ** 40)

    const duration = metricIn([decoded], 'hostmesh_tcp_connection_duration_seconds')?.histogram
    assert.equal(duration?.aggregationTemporality, 2)
    const { bucketCounts = [], explicitBounds = [], sum, count } = duration.dataPoints[0] ?? {}
    assert.equal(bucketCounts.length, explicitBounds.length + 1)
    assert.equal(bucketCounts[explicitBounds.indexOf(1)], '1')
    assert.equal(sum, 0.7)
    assert.equal(count, '1')

    const ready = metricIn([decoded], 'hostmesh_ready')?.gauge?.dataPoints[0]
    assert.equal(ready?.asDouble, 0)
  })

for (const protocol of ['http/protobuf', 'http/json'] as const)
  test(`the buckets of a latency are those that were counted (${protocol})`, async () => {
    const { totals, traffic } = counted()
    const row = traffic.row('source', 'web', 'db')
    const values = [0.01, 0.07, 1, 1.04, 3.3, 80, 80, 900_000]
    for (const ms of values) traffic.answered(row, ms)
    for (let i = 0; i < 1_000; i += 1) traffic.answered(row, 12)
    await using endpoint = await receiver()
    using _export = exportTo(endpoint.url, { totals, protocol })
    await eventually(() => assert.equal(endpoint.received.length, 1))
    const [request] = endpoint.received
    const decoded = decode(request!.body, request!.headers['content-type'])
    const metric = metricIn([decoded], 'hostmesh_tcp_first_byte_seconds')
    const point = metric?.exponentialHistogram?.dataPoints[0]
    assert.equal(metric?.exponentialHistogram?.aggregationTemporality, 2)
    assert.equal(point?.count, String(values.length + 1_000))
    assert.equal(point.scale, 3)
    const { offset = 0, bucketCounts = [] } = point.positive ?? {}
    const column = trafficLayout.columns.firstByte.rangeSeconds
    const buckets = new ExponentialBuckets(column)
    for (const ms of [...values, 12]) {
      const index = column.fromPower * 8 + buckets.bucketOf(ms / 1_000)
      assert.ok(Number(bucketCounts[index - offset]) > 0, `${ms} ms`)
      // OpenTelemetry's definition: (base^index, base^(index + 1)].
      const isOutside = ms < 0.062 || ms > 64_000
      assert.ok(isOutside || 2 ** (index / 8) < ms / 1_000, `${ms} ms`)
      assert.ok(isOutside || ms / 1_000 <= 2 ** ((index + 1) / 8) * (1 + 1e-12), `${ms} ms`)
    }
    assert.equal(
      bucketCounts.reduce((sum, count) => sum + Number(count), 0),
      values.length + 1_000,
    )
  })

test('both encodings say the same', async () => {
  const { totals, traffic } = counted()
  for (const destination of ['db', 'cache', 'größe']) {
    const row = traffic.row('source', 'web', destination)
    traffic.opened(row)
    traffic.connected(row, 3)
  }
  await using endpoint = await receiver()
  const clock = new TestClock()
  using _first = exportTo(endpoint.url, { totals, clock, protocol: 'http/protobuf' })
  using _second = exportTo(endpoint.url, { totals, clock, protocol: 'http/json' })
  await eventually(() => assert.equal(endpoint.received.length, 2))
  const [left, right] = endpoint.received.map(({ body, headers }) =>
    decode(body, headers['content-type']),
  )
  const name = 'hostmesh_tcp_connect_duration_seconds'
  assert.deepEqual(metricIn([left!], name), metricIn([right!], name))
  const opened = 'hostmesh_tcp_connections_opened_total'
  assert.deepEqual(metricIn([left!], opened), metricIn([right!], opened))
})

test('requests have a limited number of points, and together all of them', async () => {
  const { totals, traffic } = counted()
  for (let i = 0; i < 700; i += 1) traffic.opened(traffic.row('source', `web-${i}`, 'db'))
  await using endpoint = await receiver()
  const clock = new TestClock()
  using _export = exportTo(endpoint.url, { totals, clock })
  await eventually(() => assert.equal(clock.sleeping, 1))
  const requests = endpoint.received.map(({ body, headers }) =>
    decode(body, headers['content-type']),
  )
  assert.ok(requests.length > 5)
  const pointsOf = (metric: DecodedMetric): number =>
    [metric.gauge, metric.sum, metric.histogram, metric.exponentialHistogram].reduce(
      (sum, data) => sum + (data?.dataPoints.length ?? 0),
      0,
    )
  const metricsOf = (request: Decoded): readonly DecodedMetric[] =>
    request.resourceMetrics.flatMap(({ scopeMetrics }) => scopeMetrics.flatMap((s) => s.metrics))
  for (const request of requests)
    assert.ok(metricsOf(request).reduce((sum, m) => sum + pointsOf(m), 0) <= MAX_BATCH_POINTS)
  const opened = requests
    .flatMap(metricsOf)
    .filter(({ name }) => name === 'hostmesh_tcp_connections_opened_total')
    .reduce((sum, metric) => sum + pointsOf(metric), 0)
  assert.equal(opened, 700)
  const names = new Set(requests.flatMap(metricsOf).map(({ name }) => name))
  for (const { name, group } of metrics)
    if (group === 'Connections') assert.ok(names.has(name), name)
})

test('headers of the configuration are sent, and a path of the endpoint is kept', async () => {
  await using endpoint = await receiver()
  using _export = exportTo(`${endpoint.url}/otlp/`, {
    totals: new WorkerTotals(),
    headers: { authorization: 'Bearer x' },
  })
  await eventually(() => assert.equal(endpoint.received.length, 1))
  assert.equal(endpoint.received[0]?.path, '/otlp/v1/metrics')
  assert.equal(endpoint.received[0]?.headers['authorization'], 'Bearer x')
})

test('after 429, 502, 503 or 504 the same request is sent again, not before Retry-After', async () => {
  for (const status of [429, 502, 503, 504]) {
    await using endpoint = await receiver((response) => {
      response.writeHead(status, { 'retry-after': '7' }).end()
    }, accept)
    const clock = new TestClock()
    using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), clock })
    await eventually(() => assert.equal(clock.sleeping, 1))
    assert.equal(endpoint.received.length, 1)
    clock.pass(7_000)
    assert.equal(clock.sleeping, 1, 'the jitter comes after what was asked for')
    clock.pass(1_000)
    await eventually(() => assert.equal(exporting.counts().requests.accepted, 1))
    assert.deepEqual(endpoint.received[1]?.body, endpoint.received[0]?.body)
    assert.equal(exporting.counts().requests.failed, 1)
  }
})

test('any other answer is not followed by another try before the next export', async () => {
  for (const status of [301, 307, 400, 401, 404, 413, 500, 501]) {
    await using endpoint = await receiver((response) => {
      response.writeHead(status, { 'retry-after': '1', location: `${endpoint.url}/v1/other` }).end()
    }, accept)
    const clock = new TestClock()
    using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), clock })
    await eventually(() => assert.equal(clock.sleeping, 1))
    clock.pass(INTERVAL_MS - 1)
    await new Promise((resolve) => setImmediate(resolve))
    assert.equal(endpoint.received.length, 1, `status ${status}`)
    assert.equal(exporting.counts().requests.refused, 1)
    clock.pass(1)
    await eventually(() => assert.equal(exporting.counts().requests.accepted, 1))
    assert.equal(endpoint.received[1]?.path, '/v1/metrics')
  }
})

test('an endpoint that asks for a long wait gets the next export after it, at most 5 minutes later', async () => {
  await using endpoint = await receiver((response) => {
    response.writeHead(503, { 'retry-after': '999999999' }).end()
  }, accept)
  const clock = new TestClock()
  using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), clock })
  await eventually(() => assert.equal(clock.sleeping, 1))
  clock.pass(299_000)
  assert.equal(clock.sleeping, 1)
  clock.pass(1_000)
  await eventually(() => assert.equal(exporting.counts().requests.accepted, 1))
})

test('points that an endpoint rejects are counted', async () => {
  const json: Answer = (response) => {
    response.end(
      JSON.stringify({ partialSuccess: { rejectedDataPoints: '300', errorMessage: 'x' } }),
    )
  }
  const protobuf: Answer = (response) => {
    const message = { partialSuccess: { rejectedDataPoints: 300, errorMessage: 'too old' } }
    response.end(ExportMetricsServiceResponse.encode(message).finish())
  }
  for (const [protocol, answer] of [
    ['http/json', json],
    ['http/protobuf', protobuf],
  ] as const) {
    await using endpoint = await receiver(answer)
    using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), protocol })
    await eventually(() => assert.equal(exporting.counts().rejectedPoints, 300))
  }
})

test('a dead endpoint costs one connection for each export', async () => {
  const { totals, traffic } = counted()
  for (let i = 0; i < 700; i += 1) traffic.opened(traffic.row('source', `web-${i}`, 'db'))
  const dead = await receiver()
  await dead[Symbol.asyncDispose]()
  const clock = new TestClock()
  using exporting = exportTo(dead.url, { totals, clock })
  for (let exports = 1; exports <= 3; exports += 1) {
    await eventually(() => assert.equal(clock.sleeping, 1))
    assert.equal(exporting.counts().requests.failed, exports)
    clock.pass(INTERVAL_MS)
  }
})

test('an endless answer is cut off, and the next export succeeds', async () => {
  let written = 0
  await using endpoint = await receiver((response) => {
    const more = (): void => {
      while (!response.destroyed && written < 1e9) {
        written += 65_536
        if (!response.write(Buffer.alloc(65_536, 0x0a))) break
      }
    }
    response.on('drain', more).on('error', () => undefined)
    more()
  }, accept)
  const clock = new TestClock()
  using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), clock })
  await eventually(() => assert.equal(exporting.counts().requests.failed, 1))
  assert.ok(written < 20_000_000, `${written} bytes`)
  await eventually(() => assert.equal(clock.sleeping, 1))
  clock.pass(INTERVAL_MS)
  await eventually(() => assert.equal(exporting.counts().requests.accepted, 1))
})

test('an endpoint that never answers holds up one export, not the next', async () => {
  await using endpoint = await receiver(() => undefined, accept)
  const clock = new TestClock()
  using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), clock, intervalMs: 100 })
  await eventually(() => assert.equal(exporting.counts().requests.failed, 1))
  await eventually(() => assert.equal(clock.sleeping, 1))
  clock.pass(100)
  await eventually(() => assert.equal(exporting.counts().requests.accepted, 1))
})

test('an endpoint whose certificate no known CA has signed gets nothing', async () => {
  const made = execFileSync(
    'openssl',
    'req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout - -days 1 -subj /CN=x -addext subjectAltName=IP:127.0.0.1'.split(
      ' ',
    ),
    { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] },
  )
  let requests = 0
  const server = createTlsServer({ cert: made, key: made }, (_request, response) => {
    requests += 1
    response.end()
  })
  await new Promise<void>((resolve) => {
    server.listen(0, '127.0.0.1', resolve)
  })
  using exporting = exportTo(`https://127.0.0.1:${portOf(server)}`, { totals: new WorkerTotals() })
  await eventually(() => assert.equal(exporting.counts().requests.failed, 1))
  assert.equal(requests, 0)
  await closeServer(server)
})

test('garbage in an answer is not a failure, and counts nothing', async () => {
  for (const protocol of ['http/json', 'http/protobuf'] as const) {
    await using endpoint = await receiver((response) => {
      response.end(Buffer.from('0a0508ffffffffffffffffffff', 'hex'))
    })
    using exporting = exportTo(endpoint.url, { totals: new WorkerTotals(), protocol })
    await eventually(() => assert.equal(exporting.counts().requests.accepted, 1))
    assert.equal(exporting.counts().rejectedPoints, 0)
  }
})
