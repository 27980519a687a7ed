/**
 * How slow an endpoint looks: a moving average of its connect times, and how far they are from it. Pure; time comes
 * in as a number.
 *
 * A slow answer counts twice as much as a quick one, so that trouble is seen soon and recovery has to be earned. But
 * one alone proves nothing: of many samples the slowest is slower than of few, and an endpoint must not look worse for
 * being given more connections; nor may one that is passed over for an accident wait long for the next chance to show
 * it. So only what is left of the average without the usual deviation is held against it. Without samples an estimate
 * goes back to {@link UNTRIED_MS} over {@link DECAY_MS}.
 */

/** Time in which an estimate that nobody renews loses two thirds of its distance to {@link UNTRIED_MS}. */
const DECAY_MS = 10_000

/** Estimate of an endpoint that was never tried: low, so that it is tried. Milliseconds. */
const UNTRIED_MS = 1

/** What a failed try counts as, milliseconds. */
const FAILURE_MS = 5_000

/** What one sample counts for when it is slower, or quicker, than the estimate. */
const RISE = 1 / 4
const FALL = 1 / 8
const DEVIATION_SHARE = 1 / 4

/** An endpoint is called slower from so many times the other's estimate on … */
const SLOWER_FACTOR = 2

/** … and so much: below it lies what a busy machine does to either. Milliseconds. */
const SLOWER_BY_MS = 8

/** Load of one endpoint as this worker sees it. Mutable; owned by the balancer. */
export interface EndpointLoad {
  inFlight: number
  estimateMs: number
  deviationMs: number
  updatedAtMs: number
  /** Failures since the last success. */
  failures: number
}

/** The load of an endpoint nobody has tried. */
export function untriedLoad(nowMs: number): EndpointLoad {
  return { inFlight: 0, estimateMs: UNTRIED_MS, deviationMs: 0, updatedAtMs: nowMs, failures: 0 }
}

/** Takes a connect time into account. */
export function observeSuccess(load: EndpointLoad, tookMs: number, nowMs: number): void {
  observe(load, tookMs, nowMs)
  load.failures = 0
}

/** Takes a failed connect into account. */
export function observeFailure(load: EndpointLoad, nowMs: number): void {
  // One is enough: whoever waited for it lost more than a slow answer costs.
  load.estimateMs = Math.max(load.estimateMs, FAILURE_MS)
  load.deviationMs = 0
  load.updatedAtMs = nowMs
  load.failures += 1
}

/** How slow it looks now, milliseconds. */
export function latencyOf(load: EndpointLoad, nowMs: number): number {
  return UNTRIED_MS + (load.estimateMs - UNTRIED_MS) * keptAfter(load, nowMs)
}

/** Whether one looks so much slower than the other that it is no accident. */
export function isSlower(load: EndpointLoad, other: EndpointLoad, nowMs: number): boolean {
  const provenMs = (load.estimateMs - load.deviationMs) * keptAfter(load, nowMs)
  return provenMs > SLOWER_FACTOR * latencyOf(other, nowMs) + SLOWER_BY_MS
}

function observe(load: EndpointLoad, tookMs: number, nowMs: number): void {
  const { estimateMs, deviationMs } = load
  // An old estimate says less than a new sample.
  const aged = 1 - keptAfter(load, nowMs)
  const share = Math.max(tookMs > estimateMs ? RISE : FALL, aged)
  const off = Math.abs(tookMs - estimateMs)
  load.estimateMs = estimateMs + (tookMs - estimateMs) * share
  load.deviationMs = deviationMs + (off - deviationMs) * Math.max(DEVIATION_SHARE, aged)
  load.updatedAtMs = nowMs
}

/** What time has left of the estimate. */
function keptAfter(load: EndpointLoad, nowMs: number): number {
  return Math.exp(-Math.max(0, nowMs - load.updatedAtMs) / DECAY_MS)
}
