/** The check of reports: good ones pass unchanged, a broken one is refused with its place, nothing else is thrown. */
import assert from 'node:assert/strict'
import test from 'node:test'
import * as fc from 'fast-check'
import { checkReport } from '../../src/aggregator/report-schema.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { type HostReport, reportLimits } from '../../src/model/report.ts'
import { hostReport, reportedFacts, reportRecord } from '../harness/host-report.ts'

/** A report with every member, as it comes from the network. */
function fullReport(): Record<string, unknown> {
  const report: HostReport = hostReport({
    live: {
      spanMs: 1_000,
      names: ['web', 'db'],
      pairs: [[1, 0, 1, 3, 0, [0, 2]]],
      host: [0, 1],
      state: 'ready',
      problems: ['HM_CAPTURE_DRIFT'],
    },
    records: [
      reportRecord(7, 3, {
        facts: reportedFacts({
          problems: [{ code: 'HM_X', message: 'It is broken', blocks: true }],
        }),
        workloads: [
          { service: 'hostmesh', cpuMs: 1.5, memoryBytes: 9, pressure: { cpu: 0.5, io: 0 } },
        ],
      }),
      reportRecord(9, 4),
    ],
  })
  return JSON.parse(JSON.stringify(report))
}

function refusal(value: unknown): string {
  try {
    checkReport(value)
  } catch (thrown) {
    assert.ok(thrown instanceof MeshError, String(thrown))
    return thrown.message
  }
  return 'accepted'
}

/** Replaces what is at a path such as `records.0.spanMs`. */
function changed(path: string, value: unknown): unknown {
  const report = fullReport()
  const steps = path.split('.')
  const last = steps.pop() ?? ''
  let at: unknown = report
  for (const step of steps) at = Object(at)[step]
  Object(at)[last] = value
  return report
}

test('a full report passes as it is', () => {
  const report = fullReport()
  assert.deepEqual(checkReport(report), report)
})

test('every broken rule is refused, and the message names its place', () => {
  const cases: readonly [string, unknown, RegExp][] = [
    ['host', 'a\nb', /host must match/],
    ['host', 'x'.repeat(200), /host must match/],
    ['host', '__proto__', /host must match/],
    ['key', 'short', /key must match/],
    ['run', 5, /run must match/],
    ['clockMs', '5', /clockMs/],
    ['layout', '', /layout/],
    ['columns', undefined, /columns must come with records/],
    ['columns.pair.0.name', 'a b', /columns\.pair\[0\]\.name/],
    ['columns.pair.1.name', 'opened', /columns\.pair must not have two columns/],
    ['columns.pair.1.values', Array(2_000).fill('x'), /columns\.pair\[1\]\.values/],
    ['columns.pair.3.cells', 1_025, /columns\.pair\[3\]\.cells/],
    ['columns.pair.3.offset', 1e9, /columns\.pair\[3\]\.offset/],
    ['columns.pair.3.scale', 0.5, /columns\.pair\[3\]\.scale/],
    ['columns.pair.4.boundsSeconds', [1, 1], /boundsSeconds must ascend/],
    ['records', {}, /records must be a list/],
    ['records', Array(65).fill(reportRecord(1, 1)), /records must not be longer than 64/],
    ['records.1.sequence', 7, /records\[1\]\.sequence must ascend/],
    ['records.0.sequence', 1.5, /records\[0\]\.sequence/],
    ['records.0.ageMs', -1, /records\[0\]\.ageMs/],
    ['records.0.spanMs', null, /records\[0\]\.spanMs/],
    ['records.0.merged', 0, /records\[0\]\.merged/],
    ['records.0.names.1', '<script>', /records\[0\]\.names\[1\]/],
    ['records.0.names.1', ' \u202edb', /records\[0\]\.names\[1\]/],
    ['records.0.pairs.0.1', 2, /records\[0\]\.pairs\[0\]/],
    ['records.0.pairs.0.0', 2, /records\[0\]\.pairs\[0\]/],
    ['records.0.pairs.0.3', -1, /records\[0\]\.pairs\[0\]/],
    ['records.0.pairs.0.5', [14, 1], /records\[0\]\.pairs\[0\]\[5\]/],
    ['records.0.pairs.0.5', [0, -1], /records\[0\]\.pairs\[0\]\[5\]/],
    ['records.0.pairs.0.5', [0, 1e16], /records\[0\]\.pairs\[0\]\[5\]/],
    ['records.0.pairs.0.5', [0], /records\[0\]\.pairs\[0\]\[5\]/],
    ['records.0.host', [2, 1], /records\[0\]\.host/],
    ['records.0.workloads.0.service', '', /workloads\[0\]\.service/],
    ['records.0.workloads.0.pressure.cpu', 1.1, /workloads\[0\]\.pressure\.cpu/],
    ['records.0.facts.problems.0.message', 'x'.repeat(401), /problems\[0\]\.message/],
    ['records.0.facts.services.0.target', '"><', /services\[0\]\.target/],
    ['records.0.facts.state', 'fine', /facts\.state/],
    ['live.state', 'fine', /live\.state/],
    ['live.problems.0', 'a b', /live\.problems\[0\]/],
    ['version', 2, /another version/],
  ]
  for (const [path, value, expected] of cases)
    assert.match(refusal(changed(path, value)), expected, path)
})

test('limits are those of the protocol', () => {
  const names = (count: number): unknown =>
    changed(
      'records.0.names',
      Array.from({ length: count }, (_, i) => `s${i}`),
    )
  assert.equal(refusal(names(reportLimits.names)), 'accepted')
  assert.match(refusal(names(reportLimits.names + 1)), /names must not be longer/)
})

test('line breaks and marks of direction in messages become spaces', () => {
  const report = checkReport(
    changed('records.0.facts.problems.0.message', 'a\nb\u001b[31m\u202ec\u2028d\ud800'),
  )
  assert.equal(report.records[0]?.facts?.problems[0]?.message, 'a b [31m c d\ufffd')
})

test('unknown members are not passed on, __proto__ among them', () => {
  const text = JSON.stringify(fullReport()).replace(
    '"facts":{',
    '"facts":{"__proto__":{"admin":true},"surprise":1,',
  )
  const report = checkReport(JSON.parse(text.replace('{', '{"__proto__":{"admin":true},"x":1,')))
  assert.deepEqual(report, fullReport())
  assert.equal('admin' in {}, false)
  assert.equal('admin' in (report.records[0]?.facts ?? {}), false)
})

test('a clock in the year 2100 is accepted', () => {
  assert.equal(refusal(changed('clockMs', Date.UTC(2100, 0, 1))), 'accepted')
})

test('any JSON is accepted or refused with a MeshError', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (value) => {
      refusal(value)
    }),
  )
})

test('a good report with one part replaced by anything is refused or still good', () => {
  const paths = pathsOf(fullReport())
  fc.assert(
    fc.property(
      fc.constantFrom(...paths),
      fc.oneof(
        fc.jsonValue(),
        fc.constantFrom(-1, 1e300, 0.5, '\n', '', '__proto__', null, [], {}, [0, Infinity, 0, NaN]),
      ),
      (path, value) => {
        const report = changed(path, value)
        if (refusal(report) === 'accepted') assertGood(checkReport(report))
      },
    ),
    { numRuns: 3_000 },
  )
})

/** What the rest of the aggregator relies on, looked at without the rules of the check. */
function assertGood(report: HostReport): void {
  walk(report, (value, path) => {
    if (typeof value === 'number') {
      assert.ok(Number.isFinite(value), path)
      assert.ok(value >= 0 || /leftMs|offset|scale/.test(path), path)
    }
    if (typeof value === 'string') {
      assert.ok(value.length <= 400 && value.isWellFormed(), path)
      assert.doesNotMatch(value, /[\p{Cc}\p{Zl}\p{Zp}\u202a-\u202e]/u, path)
    }
  })
  for (const { names, pairs } of report.records)
    for (const [, source, destination] of pairs)
      assert.ok(typeof names[source] === 'string' && typeof names[destination] === 'string')
}

function walk(value: unknown, visit: (value: unknown, path: string) => void, path = ''): void {
  visit(value, path)
  if (typeof value !== 'object' || value === null) return
  for (const [name, member] of Object.entries(value)) walk(member, visit, `${path}.${name}`)
}

function pathsOf(value: unknown): string[] {
  const paths: string[] = []
  walk(value, (_, path) => void (path !== '' && paths.push(path.slice(1))))
  return paths
}
