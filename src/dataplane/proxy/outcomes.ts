/**
 * The outcomes of the last connections of each caller to each instance, and of the last delivery to each application of
 * this host: the data for `hostmesh explain` and probes. For one worker; bounded.
 *
 * Only the latest outcome of each kind is kept, so that a connection costs two look-ups and no memory.
 */
import { describeError, errorCode } from '../../lib/errors.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import { flagOf } from './ending.ts'

/**
 * Pairs of caller and target that are kept in each direction; beyond it the first pair of the first caller is dropped.
 */
const MAX_ENTRIES = 4_096

/** Longest reason, in characters: it may quote text from a peer. */
const MAX_REASON = 300

/** A connection that failed to open. Times are wall clock, milliseconds. */
export interface Failure {
  readonly atMs: number
  readonly flag: ResponseFlag
  readonly code: string
  readonly reason: string
}

/** The latest success and the latest failure. */
export interface Outcome {
  okAtMs: number | undefined
  failure: Failure | undefined
}

/** The latest outcomes of one pair. */
export interface OutcomeView extends Readonly<Outcome> {
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  /** The instance, `<node>/<service id>`; for an inbound connection, the service. */
  readonly target: string
}

/** The outcomes of one worker. */
export class Outcomes {
  private readonly outbound = new OutcomeTable()
  private readonly inbound = new OutcomeTable()
  /** By the address of the application; no more than there are local services. */
  private readonly applications = new Map<string, Outcome>()

  /** A connection of `source` to the target has been opened. */
  succeeded(direction: 'outbound' | 'inbound', source: string, target: string): void {
    this.tableOf(direction).of(source, target).okAtMs = Date.now()
  }

  /** The connection failed. A caller that hung up is not a failure of the target. */
  failed(direction: 'outbound' | 'inbound', source: string, target: string, thrown: unknown): void {
    const failure = failureOf(thrown)
    if (failure.flag !== 'DC') this.tableOf(direction).of(source, target).failure = failure
  }

  /** The application at this address has accepted a connection. */
  delivered(address: string): void {
    this.applicationAt(address).okAtMs = Date.now()
  }

  /** The application has not accepted the connection. */
  undelivered(address: string, thrown: unknown): void {
    this.applicationAt(address).failure = failureOf(thrown)
  }

  /** Why the last connection to the application failed; undefined if it succeeded or is older than `maxAgeMs`. */
  lastUndelivered(address: string, maxAgeMs: number): Failure | undefined {
    const outcome = this.applications.get(address)
    const failure = outcome?.failure
    if (failure === undefined || failure.atMs <= (outcome?.okAtMs ?? 0)) return undefined
    return Date.now() - failure.atMs <= maxAgeMs ? failure : undefined
  }

  /** The outcomes of all pairs. */
  list(): OutcomeView[] {
    return [...this.outbound.list('outbound'), ...this.inbound.list('inbound')]
  }

  private tableOf(direction: 'outbound' | 'inbound'): OutcomeTable {
    return direction === 'outbound' ? this.outbound : this.inbound
  }

  private applicationAt(address: string): Outcome {
    let outcome = this.applications.get(address)
    if (outcome === undefined) {
      outcome = { okAtMs: undefined, failure: undefined }
      this.applications.set(address, outcome)
    }
    return outcome
  }
}

/** Outcomes by caller and target. */
class OutcomeTable {
  private readonly bySource = new Map<string, Map<string, Outcome>>()
  private size = 0

  of(source: string, target: string): Outcome {
    const known = this.bySource.get(source)?.get(target)
    if (known !== undefined) return known
    if (this.size >= MAX_ENTRIES) this.forgetOne()
    const targets = this.bySource.get(source) ?? new Map<string, Outcome>()
    this.bySource.set(source, targets)
    const outcome: Outcome = { okAtMs: undefined, failure: undefined }
    targets.set(target, outcome)
    this.size += 1
    return outcome
  }

  list(direction: OutcomeView['direction']): OutcomeView[] {
    return [...this.bySource].flatMap(([source, targets]) =>
      [...targets].map(([target, outcome]) => ({ direction, source, target, ...outcome })),
    )
  }

  private forgetOne(): void {
    for (const [source, targets] of this.bySource) {
      for (const target of targets.keys()) {
        targets.delete(target)
        break
      }
      this.size -= 1
      if (targets.size === 0) this.bySource.delete(source)
      return
    }
  }
}

function failureOf(thrown: unknown): Failure {
  return {
    atMs: Date.now(),
    flag: flagOf(thrown),
    code: errorCode(thrown),
    reason: describeError(thrown).slice(0, MAX_REASON),
  }
}
