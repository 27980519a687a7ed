/**
 * Loading the program and reading the first answers leaves more garbage than the daemon will ever hold again, in
 * pages that V8 keeps. A daemon has nothing to do then, so it collects once and gives the pages back: a seventh of
 * its resident memory (docs/performance.md, "Memory").
 */

/**
 * Collects garbage of the calling thread and returns free pages to the system; takes tens of milliseconds. Does nothing
 * where Node was started without `--expose-gc`, as scripts/hostmesh does.
 */
export function returnStartupMemory(): void {
  globalThis.gc?.({ type: 'major', execution: 'sync', flavor: 'last-resort' })
}
