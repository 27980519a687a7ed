/**
 * Lines of the access log: what they say, which are written, and that nothing in them can end or forge one.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { AccessLines, MAX_WAITING_BYTES } from '../../src/dataplane/access-lines.ts'
import type { FromWorker } from '../../src/dataplane/protocol.ts'
import { AccessLog, type AccessLogSettings } from '../../src/dataplane/proxy/access-log.ts'
import {
  type AccessRecord,
  accessLine,
  MAX_LINE_BYTES,
} from '../../src/dataplane/proxy/access-log-line.ts'
import { ConnectionTable } from '../../src/dataplane/proxy/connection-table.ts'
import { StreamResetError } from '../../src/dataplane/tunnel/stream.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { LineOutput } from '../../src/lib/line-output.ts'
import { TrafficCounters, WorkerCounters } from '../../src/telemetry/counters.ts'
import { TestClock } from '../harness/test-clock.ts'
import { openStage } from '../integration/tunnel-fixtures.ts'
import { looseAccount } from './account-fixtures.ts'

const defaults: AccessLogSettings = {
  include: 'all',
  sample: 1,
  linesPerSecond: 100,
  format: 'json',
  to: 'standardError',
}

const limits = {
  connections: 1e6,
  connectionsPerService: 1e6,
  inboundConnections: 1e6,
  inboundConnectionsPerService: 1e6,
  idleMs: 1_000,
  halfClosedMs: 100,
}

const record: AccessRecord = {
  start_time: Date.UTC(2026, 0, 2, 3, 4, 5, 6),
  duration: 12.7,
  direction: 'outbound',
  source_service: 'web',
  destination_service: 'db',
  response_flags: '-',
  response_code_details: undefined,
  bytes_received: 3,
  bytes_sent: 2 ** 52,
  connect_duration: 1.234_567,
  first_byte_duration: undefined,
  upstream_cluster: 'db',
  upstream_host: '10.0.0.2:15443',
  instance: 'b/db',
  downstream_remote_address: '[::1]:40000',
  downstream_local_address: '240.0.0.1:5432',
  requested_server_name: undefined,
  peer_spiffe_id: 'spiffe://mesh.test/ns/default/dc/dc1/svc/db',
  transport: 'tunnel',
  connection_id: '0-1',
  trace_id: 'ab'.repeat(16),
}

/** Everything at which a reader of lines, a terminal or a page might break. */
const FORBIDDEN = /[^\x20-\x7e]/

const anyText = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 600 }),
  fc
    .array(
      fc.constantFrom('"', '\\', '\n', '\r', '\0', '\u009b', '\u2028', '\u202e', '\ud800', '='),
      {
        maxLength: 400,
      },
    )
    .map((parts) => parts.join('')),
)
const hostile = fc.record({
  ...Object.fromEntries(
    Object.entries(record)
      .filter(([, value]) => typeof value !== 'number')
      .map(([name]) => [name, anyText]),
  ),
  start_time: fc.constant(0),
  duration: fc.double({ noNaN: true, noDefaultInfinity: true }),
  bytes_received: fc.constant(0),
  bytes_sent: fc.constant(0),
  connect_duration: fc.constant(1),
}) as unknown as fc.Arbitrary<AccessRecord>

function scene(settings: Partial<AccessLogSettings> = {}) {
  const lines: Record<string, unknown>[] = []
  const limited: number[] = []
  const clock = new TestClock({ monotonicMs: 0 })
  const log = new AccessLog({
    settings: { ...defaults, ...settings },
    idPrefix: '0-',
    clock,
    write: (line) => lines.push(JSON.parse(line)),
    onLimited: () => limited.push(1),
  })
  const counters = new TrafficCounters(TrafficCounters.createMemory(), () => undefined)
  const table = new ConnectionTable(limits, counters, log)
  const from = { ip: '10.0.0.9', port: 40_000 }
  const begin = (direction: 'outbound' | 'inbound' = 'outbound') => {
    const connection = table.add(direction, 'web', looseAccount(), from)
    table.setDestination(connection, {
      state: 'refused',
      destination: 'db',
      row: 2,
      peer: undefined,
    })
    return connection
  }
  return { lines, limited, clock, log, table, begin }
}

test('a line of JSON has all fields in order, and null for what is not known', () => {
  const line = accessLine(record, 'json')
  assert.equal(
    line,
    `{"log":"access","start_time":"2026-01-02T03:04:05.006Z","duration":13,"direction":"outbound","source_service":"web","destination_service":"db","response_flags":"-","response_code_details":null,"bytes_received":3,"bytes_sent":${2 ** 52},"connect_duration":1.235,"first_byte_duration":null,"upstream_cluster":"db","upstream_host":"10.0.0.2:15443","instance":"b/db","downstream_remote_address":"[::1]:40000","downstream_local_address":"240.0.0.1:5432","requested_server_name":null,"peer_spiffe_id":"spiffe://mesh.test/ns/default/dc/dc1/svc/db","transport":"tunnel","connection_id":"0-1","trace_id":"${'ab'.repeat(16)}"}\n`,
  )
})

test('a line of logfmt leaves out what is not known, and quotes what needs it', () => {
  const line = accessLine({ ...record, source_service: 'a b=c', instance: undefined }, 'logfmt')
  assert.match(
    line,
    /^log=access start_time=2026-01-02T03:04:05.006Z duration=13 direction=outbound source_service="a b=c" destination_service=db response_flags=- bytes_received=3 /,
  )
  assert.doesNotMatch(line, /null|undefined|instance/)
})

test('whatever the fields hold, a line is one short line of printable ASCII, and JSON with the same fields', () => {
  fc.assert(
    fc.property(hostile, (fields) => {
      for (const format of ['json', 'logfmt'] as const) {
        const line = accessLine(fields, format)
        assert.ok(line.endsWith('\n'))
        assert.doesNotMatch(line.slice(0, -1), FORBIDDEN)
        assert.ok(line.length <= MAX_LINE_BYTES, String(line.length))
      }
      const parsed = JSON.parse(accessLine(fields, 'json')) as Record<string, unknown>
      assert.deepEqual(new Set(Object.keys(parsed)), new Set(['log', ...Object.keys(fields)]))
      assert.equal(parsed['log'], 'access')
      for (const [name, value] of Object.entries(fields))
        if (typeof value === 'string')
          assert.ok(
            value.toWellFormed().startsWith(String(parsed[name]).replace(/\ufffd$/, '')),
            name,
          )
    }),
    { numRuns: 300 },
  )
})

test('logfmt can be split at its spaces: no value opens another field', () => {
  fc.assert(
    fc.property(anyText, (text) => {
      const line = accessLine({ ...record, source_service: text }, 'logfmt').trimEnd()
      const names = Array.from(
        line.matchAll(/(?:^| )(\w+)=(?:"(?:[^"\\]|\\.)*"|[^ "]*)/g),
        ([, name]) => name,
      )
      const known = Object.entries(record).filter(([, value]) => value !== undefined)
      assert.deepEqual(names, ['log', ...known.map(([name]) => name)])
    }),
  )
})

test('an ended connection has one line, with the code of what ended it', () => {
  const { lines, table, begin } = scene()
  const ordered = begin()
  ordered.stage = openStage({ peer: { ip: '10.0.0.2', port: 15_443 } })
  ordered.connectedMs = ordered.startedMs + 2
  ordered.firstByteMs = 0.5
  ordered.sentBytes = 3
  ordered.receivedBytes = 4
  table.end(ordered, '-')
  table.end(ordered, 'UC')
  table.end(begin(), 'DENY', new StreamResetError('denied'))
  table.end(begin('inbound'), 'UC', undefined, new MeshError('HM_CONNECTION_BROKEN', 'gone'))
  assert.deepEqual(
    lines.map((line) => [line['response_flags'], line['response_code_details']]),
    [
      ['-', null],
      ['DENY', 'HM_TUNNEL_STREAM_RESET:denied'],
      ['UC', 'HM_CONNECTION_BROKEN'],
    ],
  )
  const { bytes_received, bytes_sent, connect_duration, first_byte_duration, upstream_host } =
    lines[0] ?? {}
  assert.deepEqual(
    { bytes_received, bytes_sent, connect_duration, first_byte_duration, upstream_host },
    {
      bytes_received: 3,
      bytes_sent: 4,
      connect_duration: 2,
      first_byte_duration: 0.5,
      upstream_host: '10.0.0.2:15443',
    },
  )
  assert.match(String(lines[0]?.['trace_id']), /^[0-9a-f]{32}$/)
  assert.notEqual(lines[0]?.['trace_id'], lines[1]?.['trace_id'])
  assert.equal(lines[2]?.['trace_id'], null, 'the caller has sent none')
  assert.equal(lines[0]?.['downstream_remote_address'], '10.0.0.9:40000')
})

test('include: errors leaves out connections that ended in order', () => {
  const { lines, table, begin } = scene({ include: 'errors' })
  table.end(begin(), '-')
  table.end(begin(), 'DC')
  assert.deepEqual(
    lines.map((line) => line['response_flags']),
    ['DC'],
  )
})

test('a share of the connections in order is written, the same on both hosts, and every failure', () => {
  const settings = { sample: 0.1, linesPerSecond: 1e6 }
  const [caller, called] = [scene(settings), scene(settings)]
  for (let i = 0; i < 1_000; i += 1) {
    const [out, arrived] = [caller.begin(), called.begin('inbound')]
    arrived.traceparent = out.traceparent
    caller.table.end(out, '-')
    called.table.end(arrived, '-')
  }
  const ids = (lines: Record<string, unknown>[]) => lines.map((line) => line['trace_id'])
  assert.ok(Math.abs(caller.lines.length - 100) <= 3, String(caller.lines.length))
  assert.deepEqual(ids(called.lines), ids(caller.lines))
  const untraced = called.lines.length
  for (let i = 0; i < 1_000; i += 1) called.table.end(called.begin('inbound'), '-')
  assert.ok(Math.abs(called.lines.length - untraced - 100) <= 3)
  const before = caller.lines.length
  for (let i = 0; i < 50; i += 1) caller.table.end(caller.begin(), 'UF')
  assert.equal(caller.lines.length, before + 50)
})

test('lines beyond the limit are counted, and time gives new credit', () => {
  const { lines, limited, log, clock, begin } = scene({ linesPerSecond: 10 })
  const connection = begin()
  const end = (): void => log.end(connection, 'UF', undefined, clock.monotonicMs())
  for (let i = 0; i < 25; i += 1) end()
  assert.deepEqual([lines.length, limited.length], [10, 15])
  clock.pass(500)
  for (let i = 0; i < 25; i += 1) end()
  assert.deepEqual([lines.length, limited.length], [15, 35])
  clock.pass(3_600_000)
  for (let i = 0; i < 25; i += 1) end()
  assert.equal(lines.length, 25, 'an hour of silence is no credit for more than a second')
})

test('without an access log a connection gets no trace, and its address is not asked for', () => {
  const table = new ConnectionTable(
    limits,
    new TrafficCounters(TrafficCounters.createMemory(), () => undefined),
  )
  const from = {
    get remoteAddress(): string {
      throw new Error('asked')
    },
  }
  const connection = table.add('outbound', 'web', looseAccount(), from)
  table.end(connection, '-')
  assert.equal(connection.traceparent, undefined)
})

test('a main thread that writes nothing costs a bounded number of bytes; the rest is counted', (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const posted: Extract<FromWorker, { kind: 'accessLines' }>[] = []
  const counters = new WorkerCounters(WorkerCounters.createMemory())
  let lost = 0
  const lines = new AccessLines(
    {
      accessLog: { ...defaults, linesPerSecond: 1e6, to: 'mainThread' },
      idPrefix: '0-',
    },
    {
      post: (message) => {
        if (message.kind === 'accessLines') posted.push(message)
      },
      output: new LineOutput({
        write: (bytes) => bytes.length,
        report: () => '',
        onLost: () => undefined,
      }),
      counters: {
        inc: (name, by) => {
          counters.inc(name, by)
          lost += 1
        },
      },
    },
  )
  const { log } = lines
  assert.ok(log)
  const { begin } = scene()
  const connection = begin()
  const end = (count: number): void => {
    for (let i = 0; i < count; i += 1) log.end(connection, 'UF', undefined, performance.now())
  }
  end(10_000)
  t.mock.timers.tick(1_000)
  const bytes = posted.reduce((sum, { text }) => sum + text.length, 0)
  const written = posted.reduce((sum, one) => sum + one.lines, 0)
  assert.ok(bytes <= MAX_WAITING_BYTES && bytes > MAX_WAITING_BYTES - 2_000, String(bytes))
  assert.equal(written + lost, 10_000)
  lines.written(bytes)
  end(1)
  lines.flush()
  assert.equal(posted.at(-1)?.lines, 1, 'room again')
  assert.equal(written + lost, 10_000)
})
