/**
 * What a starting daemon still waits for, by name. Ready when nothing is left.
 */

/** One thing that is waited for. */
export interface Blocker {
  /** It has come; further calls do nothing. */
  release(): void
}

/** The set of things that are waited for. */
export class Readiness {
  private readonly blockers = new Set<string>()

  /** Enters something to wait for. `name` completes "waiting for …". */
  block(name: string): Blocker {
    this.blockers.add(name)
    return { release: () => this.blockers.delete(name) }
  }

  /** What is still waited for. */
  awaited(): readonly string[] {
    return [...this.blockers]
  }
}
