/**
 * The last connections of a worker that were refused or aborted, with the reason: a ring of {@link KEPT} entries, for
 * `hostmesh connections --refused` and `hostmesh explain`.
 *
 * Connections that end in order, or that the caller ends, are not listed. Entries hold text, not the connection, so
 * that the connection can be collected.
 */
import { describeError, errorCode } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { ConnectionView } from './connection.ts'

/** Entries per worker; about 200 kB. */
const KEPT = 256

/** Longest reason, in characters: it may quote text from a peer. */
const MAX_REASON = 500

/** A connection that was refused or did not end in order. */
export interface Refusal extends ConnectionView {
  readonly flag: ResponseFlag
  readonly code: string
  readonly reason: string
  /** Wall clock, milliseconds. */
  readonly endedAtMs: number
}

/** The last refusals of one worker. */
export class Refusals {
  private readonly ring: Refusal[] = []
  private next = 0

  /** Adds a refusal; beyond {@link KEPT} the oldest is dropped. */
  add(connection: ConnectionView, flag: ResponseFlag, thrown: unknown): void {
    this.ring[this.next] = {
      ...connection,
      flag,
      code: errorCode(thrown),
      reason: describeError(thrown).slice(0, MAX_REASON),
      endedAtMs: Date.now(),
    }
    this.next = (this.next + 1) % KEPT
  }

  /** Newest first. */
  list(): Refusal[] {
    return [...this.ring.slice(this.next), ...this.ring.slice(0, this.next)].toReversed()
  }
}
