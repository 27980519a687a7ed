/** The aggregator's store survives kill -9 at any moment. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { openFleetStore, type SqliteFleetStore } from '../../src/aggregator/open-fleet-store.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually } from '../harness/eventually.ts'
import { readAccepted, STORE_BEGIN_MS, STORE_HOSTS } from '../harness/fleet-store-process.ts'
import { TestClock } from '../harness/test-clock.ts'

const KILLS = 15

test('after many kills every accepted record is there once, and the tiers agree', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'hostmesh-fleet-store-kill-'))
  try {
    const path = join(directory, 'fleet.db')
    for (let kill = 0; kill < KILLS; kill += 1) await storeAndKill(path, 20 + ((kill * 37) % 150))
    await using store = await openFleetStore({
      path,
      clock: new TestClock({ wallMs: 0 }),
      log: silentLog,
    })
    const accepted = readAccepted(path)
    let highest = 0
    for (const host of STORE_HOSTS) {
      const told = accepted.get(host) ?? 0
      assert.ok(told > KILLS, `${host} has stored ${told}`)
      const stored = await storedOf(store, host)
      // What was stored and not told any more may be there, too: at most one report of each life.
      assert.ok(stored >= told && stored <= told + 4, `${stored} stored, ${told} told`)
      highest = Math.max(highest, stored)
      const [first] = (await store.hosts(STORE_BEGIN_MS + 1e9)).filter(({ name }) => name === host)
      assert.equal(first?.lostRecords, 0)
    }
    const endMs = STORE_BEGIN_MS + (highest + 1) * 10_000
    while (!(await store.maintain(endMs + 3_600_000, 1_000))) continue
    for (const host of STORE_HOSTS) await storedOf(store, host)
    await assertTiersAgree(store, STORE_BEGIN_MS, endMs)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})

/** Starts the process and kills it some time after it has begun to store. */
async function storeAndKill(path: string, afterMs: number): Promise<void> {
  const before = total(readAccepted(path))
  const script = join(import.meta.dirname, '../harness/fleet-store-process.ts')
  const child = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', script, path], {
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const exited = once(child, 'exit')
  try {
    await eventually(() => assert.ok(total(readAccepted(path)) > before), { everyMs: 5 })
    // Not a wait for something: the moment of the kill is to be any.
    await sleep(afterMs)
  } finally {
    child.kill('SIGKILL')
  }
  const [, signal] = await exited
  assert.equal(signal, 'SIGKILL')
}

/** The number n of records of a host, of which the sum must be 1 + 2 + … + n. */
async function storedOf(store: SqliteFleetStore, host: string): Promise<number> {
  const span = { fromMs: STORE_BEGIN_MS, toMs: STORE_BEGIN_MS + 1e9 }
  const [pair] = await store.pairs(span, { host })
  const sum = pair?.figures.counts.get('opened') ?? 0
  const count = Math.round((Math.sqrt(8 * sum + 1) - 1) / 2)
  assert.equal((count * (count + 1)) / 2, sum, `${host}: ${sum} is no sum of whole records`)
  return count
}

/** Hours are the sums of minutes, and minutes of the seconds that are still there. */
async function assertTiersAgree(
  store: SqliteFleetStore,
  fromMs: number,
  toMs: number,
): Promise<void> {
  const [seconds, minutes, hours] = [
    await readSums(store, fromMs, toMs, 10_000),
    await readSums(store, fromMs, toMs, 60_000),
    await readSums(store, fromMs, toMs, 3_600_000),
  ]
  assert.deepEqual(folded(minutes, 3_600_000), hours)
  const byMinutes = folded(seconds, 60_000)
  assert.ok(byMinutes.size > 5 && byMinutes.size < minutes.size)
  for (const [atMs, sum] of byMinutes) assert.equal(minutes.get(atMs), sum)
}

async function readSums(
  store: SqliteFleetStore,
  fromMs: number,
  toMs: number,
  stepMs: number,
): Promise<Map<number, number>> {
  const end = Math.ceil(toMs / 3_600_000) * 3_600_000
  const steps = await store.history({ fromMs, toMs: end, stepMs })
  return new Map(
    steps.map(({ atMs, pairs }) => [
      atMs,
      pairs.reduce((sum, { figures }) => sum + (figures.counts.get('opened') ?? 0), 0),
    ]),
  )
}

function folded(steps: ReadonlyMap<number, number>, stepMs: number): Map<number, number> {
  const sums = new Map<number, number>()
  for (const [atMs, value] of steps) {
    const at = Math.ceil(atMs / stepMs) * stepMs
    sums.set(at, (sums.get(at) ?? 0) + value)
  }
  return sums
}

function total(accepted: ReadonlyMap<string, number>): number {
  let sum = 0
  for (const sequence of accepted.values()) sum += sequence
  return sum
}
