/**
 * Estimates how slow an endpoint is: the moving average of its connect times, and their usual deviation from it. Pure;
 * time is passed in.
 *
 * A slow answer counts twice as much as a fast one, so that trouble is seen soon and recovery takes longer. But one
 * slow answer proves nothing. The slowest of many samples is slower than that of few, and an endpoint must not look
 * worse because it gets more connections. An endpoint that is passed over by accident must soon be tried again. So only the average
 * minus the usual deviation counts against it. Without samples an estimate returns to {@link UNTRIED_MS} over
 * {@link DECAY_MS}.
 */

/** Time in which an estimate without new samples loses two thirds of its distance to {@link UNTRIED_MS}. */
const DECAY_MS = 10_000

/** Estimate for an endpoint that was never tried: low, so that it is tried. Milliseconds. */
const UNTRIED_MS = 1

/** Lowest estimate after a failed attempt, milliseconds. */
const FAILURE_MS = 5_000

/** Weight of one sample that is slower, or faster, than the estimate; and of one deviation. */
const RISE = 1 / 4
const FALL = 1 / 8
const DEVIATION_SHARE = 1 / 4

/** An endpoint counts as slower when it exceeds the other's estimate by this factor … */
const SLOWER_FACTOR = 2

/** … and by this time: a busy machine causes smaller differences at either. Milliseconds. */
const SLOWER_BY_MS = 8

/** State of one endpoint as measured by this worker. Mutable; owned by the balancer. */
export interface EndpointLoad {
  inFlight: number
  estimateMs: number
  deviationMs: number
  updatedAtMs: number
  /** Failures since the last success. */
  failures: number
}

/** The state of an endpoint that was never tried. */
export function untriedLoad(nowMs: number): EndpointLoad {
  return { inFlight: 0, estimateMs: UNTRIED_MS, deviationMs: 0, updatedAtMs: nowMs, failures: 0 }
}

/** Adds a connect time to the estimate. */
export function observeSuccess(load: EndpointLoad, tookMs: number, nowMs: number): void {
  observe(load, tookMs, nowMs)
  load.failures = 0
}

/** Adds a failed connect to the estimate. */
export function observeFailure(load: EndpointLoad, nowMs: number): void {
  // One failure is enough: its caller lost more time than a slow answer costs.
  load.estimateMs = Math.max(load.estimateMs, FAILURE_MS)
  load.deviationMs = 0
  load.updatedAtMs = nowMs
  load.failures += 1
}

/** The present estimate of the connect time, milliseconds. */
export function latencyOf(load: EndpointLoad, nowMs: number): number {
  return UNTRIED_MS + (load.estimateMs - UNTRIED_MS) * keptAfter(load, nowMs)
}

/** Whether the first endpoint is so much slower than the other that it is no accident. */
export function isSlower(load: EndpointLoad, other: EndpointLoad, nowMs: number): boolean {
  const provenMs = (load.estimateMs - load.deviationMs) * keptAfter(load, nowMs)
  return provenMs > SLOWER_FACTOR * latencyOf(other, nowMs) + SLOWER_BY_MS
}

function observe(load: EndpointLoad, tookMs: number, nowMs: number): void {
  const { estimateMs, deviationMs } = load
  // The older the estimate, the more a new sample counts.
  const aged = 1 - keptAfter(load, nowMs)
  const share = Math.max(tookMs > estimateMs ? RISE : FALL, aged)
  const off = Math.abs(tookMs - estimateMs)
  load.estimateMs = estimateMs + (tookMs - estimateMs) * share
  load.deviationMs = deviationMs + (off - deviationMs) * Math.max(DEVIATION_SHARE, aged)
  load.updatedAtMs = nowMs
}

/** The part of the estimate that remains at `nowMs`. */
function keptAfter(load: EndpointLoad, nowMs: number): number {
  return Math.exp(-Math.max(0, nowMs - load.updatedAtMs) / DECAY_MS)
}
