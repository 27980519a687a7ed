/**
 * What an aggregator says was counted, pair by pair, beside what the hosts have sent.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { GraphDocument } from '../../src/model/fleet.ts'
import type { AggregatorProcess } from './aggregator-process.ts'
import { countsOf, type FleetSize, pairAt, type RowCounts } from './simulated-host.ts'

/** Counts by pair of services, written as text. */
export type PairSums = ReadonlyMap<string, string>

/** Until the step of the last record has ended, and a document covers it. */
const SETTLE_MS = 13_000

/** What must be said of each pair: of the side that has counted more connections, of the caller's where both are alike. */
export function sentSums(size: FleetSize, records: readonly number[]): PairSums {
  const sums = new Map<string, [RowCounts, RowCounts]>()
  for (const [host, last] of records.entries())
    for (let pair = 0; pair < size.pairs; pair += 1) {
      const { reporter, source, destination } = pairAt(size, host, pair)
      const key = `${source} ${destination}`
      const sides = sums.get(key) ?? [none, none]
      for (let sequence = 1; sequence <= last; sequence += 1)
        sides[reporter] = sumOf(sides[reporter], countsOf(host, pair, sequence))
      sums.set(key, sides)
    }
  return new Map(
    Array.from(sums, ([key, [caller, called]]) => [
      key,
      textOf(called.opened > caller.opened ? called : caller),
    ]),
  )
}

/** What the API says, over all that is stored; of one moment for all aggregators. */
export async function storedSums(
  aggregators: readonly AggregatorProcess[],
): Promise<readonly PairSums[]> {
  await delay(SETTLE_MS)
  const path = `/api/v1/graph?window=1d&at=${new Date(Date.now() - 1_000).toISOString()}`
  return await Promise.all(
    aggregators.map(async (aggregator) => {
      const { status, bytes } = await aggregator.ask(path, { plain: true })
      if (status !== 200) throw new Error(`The graph is answered with status ${status}`)
      const document: GraphDocument = JSON.parse(bytes.toString())
      const seconds = document.coverage.windowMs / 1_000
      return new Map(
        document.edges.map(({ source, destination, traffic }) => [
          `${source} ${destination}`,
          textOf({
            opened: Math.round(traffic.openedPerSecond * seconds),
            failed: traffic.closed['UF'] ?? 0,
            sentBytes: Math.round(traffic.sentBytesPerSecond * seconds),
            receivedBytes: Math.round(traffic.receivedBytesPerSecond * seconds),
          }),
        ]),
      )
    }),
  )
}

/** How many pairs differ. */
export function differing(left: PairSums, right: PairSums): number {
  const keys = new Set([...left.keys(), ...right.keys()])
  return [...keys].filter((key) => left.get(key) !== right.get(key)).length
}

const none: RowCounts = { opened: 0, failed: 0, sentBytes: 0, receivedBytes: 0 }

function sumOf(a: RowCounts, b: RowCounts): RowCounts {
  return {
    opened: a.opened + b.opened,
    failed: a.failed + b.failed,
    sentBytes: a.sentBytes + b.sentBytes,
    receivedBytes: a.receivedBytes + b.receivedBytes,
  }
}

function textOf({ opened, failed, sentBytes, receivedBytes }: RowCounts): string {
  return `${opened} ${failed} ${sentBytes} ${receivedBytes}`
}
