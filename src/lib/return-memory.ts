/**
 * Memory that nobody uses any more and that V8 and the C library keep for the next time.
 *
 * Loading the program and reading the first answers leaves more garbage than the daemon will ever hold again: a seventh of
 * its resident memory (docs/performance.md, "Memory"). A worker whose callers did not read for a while has the buffers of
 * all of them left. Buffers are the C library's memory, which gives back by itself only what lies above all that is in use.
 *
 * Without `--expose-gc`, which scripts/hostmesh gives, nothing is collected; where the C library is not glibc, or koffi does
 * not load, nothing is trimmed.
 */
import { nativeCalls } from './native.ts'

/**
 * Collects garbage of the calling thread until nothing more comes of it, and gives up V8's spare pages: 20 to 40 ms, a second
 * and more where ten others want the processor. V8 frees the memory of buffers beside, some milliseconds later.
 */
export function collectGarbage(): void {
  // Any milder collection keeps the pages of its heap for the next time: 30 MiB after a shortage.
  globalThis.gc?.({ type: 'major', execution: 'sync', flavor: 'last-resort' })
}

/** Gives pages that were freed back to the system, those of all threads; takes some milliseconds. */
export function trimFreed(): void {
  nativeCalls()?.malloc_trim?.(0)
}
