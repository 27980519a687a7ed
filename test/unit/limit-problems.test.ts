/**
 * What a worker says of what it is short of, and the problems that the host makes of it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { limitProblems } from '../../src/daemon/limit-problems.ts'
import { SharedLimit } from '../../src/dataplane/io/shared-limit.ts'
import { type Pressure, PressureWatch } from '../../src/dataplane/proxy/pressure.ts'
import type { Accounts } from '../../src/dataplane/tunnel/accounts.ts'
import type { Numbers } from '../../src/telemetry/columns.ts'
import {
  readWorker,
  WorkerCounters,
  type workerColumns,
  workerLayout,
} from '../../src/telemetry/counters.ts'
import { makeAccounts } from './account-fixtures.ts'

const MIB = 1_048_576

function watchOf(accounts: Accounts): {
  watch: PressureWatch
  read: () => Numbers<typeof workerColumns>
} {
  const memory = WorkerCounters.createMemory()
  return {
    watch: new PressureWatch(accounts, new WorkerCounters(memory), new SharedLimit(1_000, 1)),
    read: () => workerLayout.read(readWorker(memory)),
  }
}

function take(accounts: Accounts, name: string, count: number): void {
  const { descriptors } = accounts.shared
  descriptors.add(accounts.of(name, 0).descriptors, count)
}

test('a worker that has enough of all is no problem', () => {
  const { accounts } = makeAccounts({ descriptors: 100 })
  take(accounts, 'web', 74)
  const { watch, read } = watchOf(accounts)
  const pressure = watch.take(0)
  assert.equal(pressure.descriptors.isShort, false)
  assert.equal(pressure.descriptors.heaviest, undefined)
  assert.deepEqual(limitProblems([pressure]), [])
  assert.equal(read().connectionDescriptors, 74)
})

test('from three quarters on descriptors are short, and who has most is named', () => {
  const { accounts } = makeAccounts({ descriptors: 100 })
  take(accounts, 'web', 50)
  take(accounts, 'cron', 25)
  const { watch } = watchOf(accounts)
  const pressure = watch.take(0)
  assert.deepEqual(pressure.descriptors.heaviest, { name: 'web', used: 50 })
  const [problem, ...others] = limitProblems([pressure])
  assert.deepEqual(others, [])
  assert.equal(problem?.code, 'HM_LIMIT_DESCRIPTORS_SHORT')
  assert.match(problem?.message ?? '', /75 of 100 are in use, 0 connections.* most had web: 50$/)
  assert.match(problem?.hint ?? '', /LimitNOFILE/)
  assert.equal(problem?.blocks, false)
})

test('a refusal is a shortage whatever the numbers are now, and is over half a minute later', () => {
  const { accounts } = makeAccounts({ descriptors: 100 })
  take(accounts, 'web', 10)
  const { watch, read } = watchOf(accounts)
  watch.note('descriptors', 3)
  watch.take(1_000)
  take(accounts, 'web', -10)
  watch.note('descriptors')
  const later = watch.take(2_000).descriptors
  assert.deepEqual(later, {
    used: 0,
    limit: 100,
    isShort: true,
    refused: 4,
    heaviest: { name: 'web', used: 10 },
  })
  assert.equal(watch.take(31_999).descriptors.isShort, true)
  const over = watch.take(32_000).descriptors
  assert.deepEqual(over, { used: 0, limit: 100, isShort: false, refused: 0, heaviest: undefined })
  assert.equal(read().limitRefusals.descriptors, 4, 'a counter never goes back')
})

test('nothing shed is no refusal', () => {
  const { accounts } = makeAccounts()
  const { watch } = watchOf(accounts)
  watch.note('memory', 0)
  assert.equal(watch.take(0).memory.isShort, false)
})

test('memory that is short says how much, and for whom most is held', () => {
  const { accounts } = makeAccounts({ heldBytes: 64 * MIB })
  accounts.of('web', 0).hold(48 * MIB)
  const { watch } = watchOf(accounts)
  watch.note('memory', 7)
  const [problem] = limitProblems([watch.take(0)])
  assert.equal(problem?.code, 'HM_LIMIT_MEMORY_SHORT')
  assert.match(
    problem?.message ?? '',
    /48\.0 MiB of 64\.0 MiB are in use, 7 connections were broken off; most had web: 48\.0 MiB$/,
  )
})

test('the shortage of several workers is one problem, with the sums of those that are short', () => {
  const short = (name: string, used: number): Pressure => {
    const { accounts } = makeAccounts({ descriptors: 100 })
    take(accounts, name, used)
    return watchOf(accounts).watch.take(0)
  }
  const problems = limitProblems([
    short('web', 80),
    short('cron', 90),
    short('web', 75),
    short('db', 10),
  ])
  assert.equal(problems.length, 1)
  assert.match(problems[0]?.message ?? '', /245 of 300 are in use.* most had web: 155$/)
})

test('callers that are banned are named with their destination, the first three of a worker', () => {
  const { accounts } = makeAccounts()
  const ban = (caller: string, destination: string): void => {
    const lane = accounts.of(caller, 0).lane(destination, 0)
    for (let i = 0; i < 3; i += 1) lane.noteViolation(0, undefined)
  }
  ban('b', 'db')
  const { watch, read } = watchOf(accounts)
  const one = watch.take(1_000)
  assert.equal(read().bannedCallers, 1)
  const [problem] = limitProblems([one, one])
  assert.equal(problem?.code, 'HM_LIMIT_CALLERS_BANNED')
  assert.match(problem?.message ?? '', /: b at db$/)
  for (const caller of ['c', 'd', 'e', 'f']) ban(caller, 'db')
  assert.match(
    limitProblems([watch.take(1_500)])[0]?.message ?? '',
    /: b at db, c at db, d at db and 2 more$/,
  )
  assert.deepEqual(limitProblems([watch.take(6_000)]), [])
})

test('streams and tunnels that were refused are a problem that names the host of those who have most', () => {
  const { accounts } = makeAccounts({ sessions: 100 })
  const { watch } = watchOf(accounts)
  const { sessions } = accounts.shared
  for (let i = 0; i < 5; i += 1) sessions.add(accounts.of(`evil ${i}`, 0, '10.0.0.1').places, 2)
  sessions.add(accounts.of('web', 0, '10.0.0.2').places, 3)
  assert.deepEqual(limitProblems([watch.take(0)]), [])
  watch.note('tunnels', 4)
  watch.note('streams', 7)
  const [streams, tunnels] = limitProblems([watch.take(0)])
  assert.equal(streams?.code, 'HM_LIMIT_STREAMS_SHORT')
  assert.match(streams?.message ?? '', /7 were refused; nobody has any now$/)
  assert.equal(tunnels?.code, 'HM_LIMIT_TUNNELS_SHORT')
  assert.match(
    tunnels?.message ?? '',
    /13 of 100 are open, 4 were refused; most had evil 0 and others from 10\.0\.0\.1: 10$/,
  )
})
