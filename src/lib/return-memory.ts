/**
 * Returns unused memory that V8 and the C library would keep for later use.
 *
 * Loading the program and reading the first answers leaves more garbage than the daemon will ever hold again: a seventh
 * of its resident memory (docs/performance.md, "Memory"). A worker whose callers did not read for a while keeps their
 * buffers. Buffers are memory of the C library, which by itself returns only memory above all that is in use.
 *
 * Without `--expose-gc`, which scripts/hostmesh sets, nothing is collected; where the C library is not glibc, or koffi
 * does not load, nothing is trimmed.
 */
import { nativeCalls } from './native.ts'

/**
 * Collects garbage of the calling thread until no more is found, and returns V8's spare pages: 20 to 40 ms, or more
 * than a second if ten others use the processor. V8 frees the memory of buffers in parallel, some milliseconds later.
 */
export function collectGarbage(): void {
  // Any milder collection keeps the heap's pages for later use: 30 MiB after a shortage.
  globalThis.gc?.({ type: 'major', execution: 'sync', flavor: 'last-resort' })
}

/** Returns freed pages of all threads to the system; takes some milliseconds. */
export function trimFreed(): void {
  nativeCalls()?.malloc_trim?.(0)
}
