/**
 * The time of day in steps of a second and of ten, for what says how old it is and for questions about the last hour.
 */
import { type ReadonlySignal, type Signal, signal } from '@preact/signals'

const TEN_SECONDS_MS = 10_000

const second: Signal<number> = signal(Date.now())
const tenSeconds: Signal<number> = signal(roundedDown(Date.now()))

/** Now, milliseconds since the epoch, changed once a second. */
export const nowMs: ReadonlySignal<number> = second
/** The last ten seconds that are complete. */
export const stepMs: ReadonlySignal<number> = tenSeconds

/** Runs for as long as the page is open. */
export function followClock(): void {
  setInterval(() => {
    second.value = Date.now()
    tenSeconds.value = roundedDown(second.value)
  }, 1_000)
}

function roundedDown(ms: number): number {
  return Math.floor(ms / TEN_SECONDS_MS) * TEN_SECONDS_MS
}
