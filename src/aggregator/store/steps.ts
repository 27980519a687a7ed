/**
 * Steps of time and the tiers that have one row for each step of a host. Pure.
 *
 * A step begins after its start and includes its end, so that a record that ends with the step belongs to it.
 */

/** Names of the tiers, the finest first; also those of their tables. */
export const tierNames = ['seconds', 'minutes', 'hours'] as const

/** A tier. */
export type TierName = (typeof tierNames)[number]

/** Length of a step, milliseconds. */
export const stepMs: Readonly<Record<TierName, number>> = {
  seconds: 10_000,
  minutes: 60_000,
  hours: 3_600_000,
}

/** Steps of one host in the ids of rows. */
const HOST_FACTOR = 2 ** 32

/** The last step that has an id. */
export const LAST_STEP: number = HOST_FACTOR - 1

/** The number of the step in which this time is. */
export function stepOf(tier: TierName, timeMs: number): number {
  return Math.ceil(timeMs / stepMs[tier]) - 1
}

/** The id of a row. */
export function rowId(host: number, step: number): number {
  return host * HOST_FACTOR + Math.max(0, step)
}

/** The step in the id of a row. */
export function stepOfRow(id: number): number {
  return id % HOST_FACTOR
}

/** The last multiple of the step that is not after this time. */
export function floorTo(tier: TierName, timeMs: number): number {
  return Math.floor(timeMs / stepMs[tier]) * stepMs[tier]
}

/** Rows of one tier: steps from `first` to `last`, both included. */
export interface Rows {
  readonly tier: TierName
  readonly first: number
  readonly last: number
}

/** How far the tiers of a host go. */
export interface Reach {
  /** Before this, figures are in this tier and in coarser ones alone. */
  readonly keptFromMs: Readonly<Record<TierName, number>>
  /** Before this, the tier has all figures of the host. That of the finest is never asked. */
  readonly minutesToMs: number
  readonly hoursToMs: number
}

/**
 * Which rows together are a span: long parts from coarse tiers, the ends from the finest that has them, in order of time.
 * The span is rounded to the steps in which its ends are; its end to the end of that step, since the rows of a present
 * step are there as soon as they have come, its begin to the nearest.
 */
export function rowsOfSpan(fromMs: number, toMs: number, reach: Reach): Rows[] {
  const finest = (timeMs: number): TierName =>
    tierNames.find((tier) => timeMs >= reach.keptFromMs[tier]) ?? 'hours'
  const fromTier = finest(fromMs)
  const toTier = finest(toMs)
  let at = Math.round(fromMs / stepMs[fromTier]) * stepMs[fromTier]
  const end = Math.ceil(toMs / stepMs[toTier]) * stepMs[toTier]
  const rows: { tier: TierName; first: number; last: number }[] = []
  while (at < end) {
    const tier = tierAt(at, end, reach)
    const limit = limitOf(tier, at, end, reach)
    const last = limit / stepMs[tier] - 1
    const before = rows.at(-1)
    if (before?.tier === tier) before.last = last
    else rows.push({ tier, first: at / stepMs[tier], last })
    at = limit
  }
  return rows
}

/** The coarsest tier that has a whole step at this time, or the finest that has the time at all. */
function tierAt(at: number, end: number, reach: Reach): TierName {
  const fits = (tier: TierName, toMs: number): boolean =>
    at % stepMs[tier] === 0 && at + stepMs[tier] <= Math.min(end, toMs)
  if (fits('hours', reach.hoursToMs)) return 'hours'
  if (fits('minutes', reach.minutesToMs) && at >= reach.keptFromMs.minutes) return 'minutes'
  return 'seconds'
}

/** How far the rows of this tier are taken. */
function limitOf(tier: TierName, at: number, end: number, reach: Reach): number {
  if (tier === 'hours') return floorTo('hours', Math.min(end, reach.hoursToMs))
  // Up to where a coarser tier may begin.
  if (tier === 'minutes')
    return Math.min(
      floorTo('minutes', Math.min(end, reach.minutesToMs)),
      floorTo('hours', at) + stepMs.hours,
    )
  return Math.min(end, floorTo('minutes', at) + stepMs.minutes)
}
