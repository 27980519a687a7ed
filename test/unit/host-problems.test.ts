/**
 * What counts as a problem of a host: it decides readiness, the exit code of `hostmesh status`, the metrics,
 * the log and systemd's status line.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readinessOf } from '../../src/daemon/host.ts'
import {
  type HostCondition,
  hostProblems,
  ProblemWatch,
  problemLine,
} from '../../src/daemon/problems.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import { Problem, problemCodes } from '../../src/model/problem.ts'
import { TestClock } from '../harness/test-clock.ts'

const well: HostCondition = {
  awaited: [],
  isDraining: false,
  workers: [{ id: 0, state: 'running' }],
  captureInSync: true,
  captureProblems: [],
  stateParts: [
    { part: 'services', state: 'live', remembered: 0, ageMs: 10 },
    { part: 'policies', state: 'none', remembered: 0, ageMs: null },
  ],
  others: [],
}

const notCaptured = new Problem('HM_CAPTURE_WORKLOAD_MISSING', 'There is no cgroup')

test('a host on which nothing is wrong has no problem', () => {
  assert.deepEqual(hostProblems(well), [])
  assert.deepEqual(hostProblems({ ...well, captureInSync: undefined }), [])
})

test('what two parts have met is one problem', () => {
  const expired = (): Problem =>
    new Problem('HM_WORKER_STOPPED', 'The certificate of web expired', { subject: 'web' })
  const other = new Problem('HM_WORKER_STOPPED', 'The certificate of db expired', { subject: 'db' })
  const found = hostProblems({ ...well, others: [expired(), other, expired()] })
  assert.deepEqual(
    found.map(({ subject }) => subject),
    ['web', 'db'],
  )
})

test('each part that is wrong has its code, its sentence and a next step', () => {
  const wrong: [Partial<HostCondition>, string, string][] = [
    [
      { awaited: ['roots', 'the workers'] },
      'HM_HOST_NOT_READY',
      'Not ready: waiting for roots, the workers',
    ],
    [{ isDraining: true, awaited: ['roots'] }, 'HM_HOST_DRAINING', 'The host is draining'],
    [{ captureProblems: [notCaptured] }, 'HM_CAPTURE_WORKLOAD_MISSING', 'There is no cgroup'],
    [
      { captureInSync: false },
      'HM_CAPTURE_DRIFT',
      'The capture rules in the kernel are not the wanted ones',
    ],
    [{ workers: [{ id: 4, state: 'stopped' }] }, 'HM_WORKER_STOPPED', 'Worker 4 is stopped'],
    [
      { stateParts: [{ part: 'certificates', state: 'remembered', remembered: 3, ageMs: 95_400 }] },
      'HM_STATE_REMEMBERED',
      '3 certificates are remembered from an earlier run, last confirmed 1m35s ago',
    ],
    [
      { stateParts: [{ part: 'services', state: 'stale', remembered: 2, ageMs: 7_200_000 }] },
      'HM_STATE_REMEMBERED',
      '2 services are remembered from an earlier run and stale, last confirmed 2h ago',
    ],
    [
      { stateParts: [{ part: 'policies', state: 'stale', remembered: 0, ageMs: 5_400_000 }] },
      'HM_STATE_REMEMBERED',
      'What is known of policies is stale, last confirmed 1h30m ago',
    ],
    [
      { others: [new Problem('HM_CATALOG_FILE_BROKEN', 'Line 3')] },
      'HM_CATALOG_FILE_BROKEN',
      'Line 3',
    ],
  ]
  for (const [part, code, message] of wrong) {
    const problems = hostProblems({ ...well, ...part })
    assert.deepEqual(
      problems.map((problem) => [problem.code, problem.message]),
      [[code, message]],
    )
    assert.notEqual(problems[0]?.hint, '')
  }
})

test('an error keeps its code and hint; one without gets those of its kind', () => {
  const coded = new MeshError('HM_CERT_EXPIRED', 'It has expired', { hint: 'Issue another' })
  const expired = Problem.of(coded, 'HM_CERT_REFUSED', { subject: 'web' })
  assert.equal(expired.code, 'HM_CERT_EXPIRED')
  assert.equal(expired.message, 'It has expired')
  assert.equal(expired.hint, 'Issue another')
  assert.equal(expired.key, 'HM_CERT_EXPIRED web')
  const denied = Object.assign(new Error('open /x: permission denied'), { code: 'EACCES' })
  const problem = Problem.of(denied, 'HM_CERT_REFUSED')
  assert.equal(problem.code, 'HM_CERT_REFUSED')
  assert.equal(problem.hint, problemCodes.HM_CERT_REFUSED.hint)
})

test('a host is ready while nothing that is wrong keeps it from its work', () => {
  const ready = (condition: HostCondition): object => {
    const entries = new ProblemWatch({ list: () => hostProblems(condition), log: silentLog })
    using watch = entries
    const { awaited, isDraining } = condition
    return readinessOf({ awaited, isDraining, problems: watch.check() })
  }
  assert.deepEqual(ready(well), { ready: true, serving: true })
  assert.deepEqual(ready({ ...well, captureProblems: [notCaptured] }), {
    ready: false,
    serving: true,
  })
  const consulAway = { ...well, others: [new Problem('HM_CONSUL_QUERY_FAILED', 'Away')] }
  assert.deepEqual(ready(consulAway), { ready: true, serving: true })
  assert.deepEqual(ready({ ...well, awaited: ['roots'] }), { ready: false, serving: false })
  assert.deepEqual(ready({ ...well, isDraining: true }), { ready: false, serving: false })
})

test('a problem is logged once when it comes and once when it is gone, whatever its words do', () => {
  const lines: string[] = []
  const log: Log = {
    ...silentLog,
    warn: (message, fields) => lines.push(`warn ${message} ${String(fields?.['code'])}`),
    info: (message, fields) => lines.push(`info ${message} ${String(fields?.['code'])}`),
  }
  const clock = new TestClock({ wallMs: 1_000 })
  let problems: Problem[] = []
  const changes: number[] = []
  using watch = new ProblemWatch({
    list: () => problems,
    log,
    onChange: (entries) => changes.push(entries.length),
    clock,
  })
  assert.deepEqual(watch.check(), [])
  problems = [new Problem('HM_STATE_REMEMBERED', '2 s ago', { subject: 'services' })]
  watch.check()
  clock.pass(59_000)
  problems = [new Problem('HM_STATE_REMEMBERED', '61 s ago', { subject: 'services' })]
  const [entry] = watch.check()
  assert.equal(entry?.message, '61 s ago')
  assert.equal(entry?.since, '1970-01-01T00:00:01.000Z')
  problems = []
  assert.deepEqual(watch.check(), [])
  assert.deepEqual(lines, [
    'warn 2 s ago HM_STATE_REMEMBERED',
    'info A problem is over HM_STATE_REMEMBERED',
  ])
  assert.deepEqual(changes, [1, 0])
})

test("systemd's line says what is served, or the first problem and how many more there are", () => {
  const entry = { code: 'HM_X', message: 'One', hint: '', blocks: false, since: '' }
  assert.equal(problemLine(['web', 'db'], []), 'serving web, db')
  assert.equal(problemLine([], []), 'serving no services')
  assert.equal(problemLine(['web'], [entry]), 'HM_X: One')
  assert.equal(problemLine(['web'], [entry, entry]), 'HM_X: One (and 1 more: hostmesh status)')
})

test('a problem that does not block is the same one otherwise', () => {
  const ended = new Problem('HM_CERT_ENDED', 'The certificate of hostmesh expired', {
    subject: 'hostmesh',
  })
  const harmless = ended.withoutBlocking()
  assert.equal(harmless.code, ended.code)
  assert.equal(harmless.message, ended.message)
  assert.equal(harmless.hint, ended.hint)
  assert.equal(harmless.key, ended.key)
  assert.deepEqual([ended.blocks, harmless.blocks], [true, false])
})
