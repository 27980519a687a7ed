/**
 * How costly an endpoint looks: the peak of its recent connect times, decaying, times what it has in
 * flight. Pure; time comes in as a number.
 *
 * A slow answer raises the estimate at once, quick ones lower it over {@link DECAY_MS}: one bad
 * sample is believed, recovery has to be earned (Finagle's peak EWMA).
 */

/** Time in which an estimate loses two thirds of its distance to newer, lower samples. */
const DECAY_MS = 10_000

/** Estimate of an endpoint that was never tried: low, so that it is tried. Milliseconds. */
const UNTRIED_MS = 1

/** What a failed try counts as, milliseconds. */
const FAILURE_MS = 5_000

/** Load of one endpoint as this worker sees it. Mutable; owned by the balancer. */
export interface EndpointLoad {
  inFlight: number
  estimateMs: number
  updatedAtMs: number
  /** Failures since the last success. */
  failures: number
}

/** The load of an endpoint nobody has tried. */
export function untriedLoad(nowMs: number): EndpointLoad {
  return { inFlight: 0, estimateMs: UNTRIED_MS, updatedAtMs: nowMs, failures: 0 }
}

/** Takes a connect time into account. */
export function observeSuccess(load: EndpointLoad, tookMs: number, nowMs: number): void {
  load.estimateMs = blended(load, tookMs, nowMs)
  load.updatedAtMs = nowMs
  load.failures = 0
}

/** Takes a failed connect into account. */
export function observeFailure(load: EndpointLoad, nowMs: number): void {
  load.estimateMs = blended(load, FAILURE_MS, nowMs)
  load.updatedAtMs = nowMs
  load.failures += 1
}

/** The cost by which endpoints are compared; `weight` is the endpoint's share, at least 1. */
export function costOf(load: EndpointLoad, weight: number, nowMs: number): number {
  return (blended(load, UNTRIED_MS, nowMs) * (load.inFlight + 1)) / Math.max(1, weight)
}

function blended(load: EndpointLoad, sampleMs: number, nowMs: number): number {
  if (sampleMs >= load.estimateMs) return sampleMs
  const keep = Math.exp(-Math.max(0, nowMs - load.updatedAtMs) / DECAY_MS)
  return load.estimateMs * keep + sampleMs * (1 - keep)
}
