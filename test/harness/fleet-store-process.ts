/**
 * A process that stores records in the aggregator's store until it is killed: `node fleet-store-process.ts PATH`.
 *
 * Every host begins after the last record that it has been told is stored, as the daemon does: its memory is a file next
 * to the store, which the test reads as well. Time is that of the records: 10 s each.
 */
import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import { openFleetStore } from '../../src/aggregator/open-fleet-store.ts'
import { silentLog } from '../../src/lib/log.ts'
import { hostReport, reportRecord, runOf } from './host-report.ts'
import { TestClock } from './test-clock.ts'

/** The begin of an hour, at which the first record begins. */
export const STORE_BEGIN_MS: number = Date.UTC(2026, 0, 1)

/** Hosts that report. */
export const STORE_HOSTS: readonly string[] = ['host-0', 'host-1', 'host-2']

/** The last records that hosts were told are stored. */
export function readAccepted(path: string): Map<string, number> {
  const accepted = new Map<string, number>()
  if (!existsSync(`${path}.accepted`)) return accepted
  // The last line may be cut: the process was killed while it wrote.
  for (const line of readFileSync(`${path}.accepted`, 'utf8').split('\n').slice(0, -1)) {
    const [host = '', sequence] = line.split(' ')
    accepted.set(host, Math.max(accepted.get(host) ?? 0, Number(sequence)))
  }
  return accepted
}

async function main(path: string): Promise<void> {
  const store = await openFleetStore({
    path,
    clock: new TestClock({ wallMs: 0 }),
    log: silentLog,
    secondsMs: 1_200_000,
  })
  const accepted = readAccepted(path)
  for (;;) {
    let latestMs = 0
    await Promise.all(
      STORE_HOSTS.map(async (host) => {
        const last = accepted.get(host) ?? 0
        // Four records of which the first may be stored already, as after an answer that was lost.
        const records = [0, 1, 2, 3].map((i) => {
          const sequence = Math.max(1, last) + i
          return reportRecord(sequence, sequence, { ageMs: (3 - i) * 10_000 })
        })
        const atMs = STORE_BEGIN_MS + (Math.max(1, last) + 3) * 10_000
        const answer = await store.accept(hostReport({ host, run: runOf('one'), records }), atMs)
        if (answer.kind !== 'accepted') throw new Error('Not accepted')
        accepted.set(host, answer.accepted)
        appendFileSync(`${path}.accepted`, `${host} ${answer.accepted}\n`)
        latestMs = Math.max(latestMs, atMs)
      }),
    )
    await store.maintain(latestMs, 5)
  }
}

const [, program, path] = process.argv
if (program === import.meta.filename && path !== undefined) await main(path)
