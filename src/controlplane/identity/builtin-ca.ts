/**
 * Certificates from `hostmesh ca serve`: enrolls once with a join token (enrollment.ts), then keeps the host's own
 * certificate, those of its services (service-leaves.ts) and the bundle (bundle-follower.ts) current and on disk.
 *
 * Two loops: one checks every second what is due by the wall clock (so steps of the clock and sleep need no special
 * treatment), one follows the bundle. While the CA is unreachable both retry every few seconds, without end. Existing
 * certificates are used until they expire, and no longer; the data plane and the peers enforce that.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../lib/clock.ts'
import { describeError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import type { Problem } from '../../model/problem.ts'
import { followBundle } from './bundle-follower.ts'
import { CaConnection } from './ca-connection.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource } from './certificate-source.ts'
import { CredentialStore } from './credential-store.ts'
import { type CaParts, Enrollment } from './enrollment.ts'
import { ServiceLeaves } from './service-leaves.ts'
import { TrustedBundle } from './trusted-bundle.ts'

/** What the source is built from. */
export interface BuiltinSourceOptions {
  /** The name of this host; the token must be for it. */
  readonly host: string
  /** `host:port`. Default: the address in the token. */
  readonly server?: string | undefined
  readonly tokenFile?: string | undefined
  /** Where keys and certificates are stored; for this source only. */
  readonly directory: string
  readonly log: Log
  /** Leaves for another datacenter are rejected. Default: any datacenter. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
  readonly random?: Random
}

/** How often to check what is due: the longest time that a step of the clock goes unnoticed. */
const TICK_MS = 1_000

/** Less than this share of life left is a problem: renewal has been attempted since half of it. */
const RENEWAL_OVERDUE_SHARE = 0.2

/**
 * Reads what is on disk and starts to follow the CA.
 * @throws MeshError HM_CERT_STORE_UNWRITABLE, HM_CA_ADDRESS_INVALID
 */
export function createBuiltinSource(options: BuiltinSourceOptions): CertificateSource {
  return new BuiltinSource(options)
}

class BuiltinSource implements CertificateSource {
  readonly #board: CertificateBoard
  readonly #parts: CaParts
  readonly #enrollment: Enrollment
  readonly #leaves: ServiceLeaves
  readonly #closing = new AbortController()
  readonly #loop: WakeableLoop
  readonly #followed: Promise<void>

  constructor(options: BuiltinSourceOptions) {
    const { host, server, tokenFile, datacenter, log } = options
    const { clock = systemClock, random = systemRandom } = options
    const { signal } = this.#closing
    const onChange = (): void => this.#loop.wake()
    const onBack = (): void => this.#retryNow()
    const store = new CredentialStore(options.directory, log)
    const board = new CertificateBoard({
      log,
      clock,
      datacenter,
      renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
    })
    const connection = new CaConnection({ log, clock, random, server, onBack })
    const bundle = new TrustedBundle({ board, store, log, clock, onChange })
    const parts = { connection, bundle, store, log, clock, random, signal, onChange }
    const onEnrolled = (): void => this.#leaves.retryNow()
    const enrollment = new Enrollment({ ...parts, host, tokenFile, onEnrolled })
    this.#board = board
    this.#parts = parts
    this.#enrollment = enrollment
    this.#leaves = new ServiceLeaves({ ...parts, enrollment, board, datacenter })
    this.#restore()
    this.#loop = new WakeableLoop({
      clock,
      signal,
      pass: () => this.#renewAll(),
      onError(thrown) {
        connection.noteFailure(thrown)
        return TICK_MS
      },
    })
    this.#followed = followBundle(parts, enrollment)
  }

  get description(): string {
    return `hostmesh CA at ${this.#parts.connection.address ?? 'the address of the join token'}`
  }

  watchLeaf(service: string, onLeaf: (leaf: Leaf) => void): Disposable {
    return this.#board.watchLeaf(service, onLeaf, () => this.#leaves.open(service))
  }

  watchRoots(onRoots: (bundle: TrustBundle) => void): Disposable {
    return this.#board.watchRoots(onRoots)
  }

  problems(): readonly Problem[] {
    const { connection, store } = this.#parts
    return [
      connection.problem,
      ...this.#enrollment.problems(),
      store.problem,
      ...this.#leaves.problems(),
      ...this.#board.problems(),
    ].filter((problem) => problem !== undefined)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closing.abort()
    this.#parts.connection[Symbol.dispose]()
    await Promise.all([this.#loop.ended, this.#followed])
    this.#board[Symbol.dispose]()
  }

  /** Loads what an earlier run stored. Damage is logged, and repaired by querying the CA again. */
  #restore(): void {
    const { connection, bundle, store, log } = this.#parts
    try {
      const stored = store.readBundle()
      if (stored === undefined) return
      connection.locate(stored.server)
      bundle.restore(stored)
      // Without a bundle it is not known which CA a certificate is valid for.
      if (bundle.current === undefined) return
      const credential = store.readHost()
      if (credential !== undefined) this.#enrollment.restore(credential)
    } catch (thrown) {
      log.warn('Cannot use what is left of an earlier life; asking the CA', {
        error: describeError(thrown),
      })
    }
  }

  /** Does what is due now; returns how long to wait until the next check. */
  async #renewAll(): Promise<number> {
    this.#leaves.logOverdue()
    this.#enrollment.logOverdue()
    if (this.#parts.connection.isDue) {
      await this.#enrollment.enrollOrRenew()
      if (this.#enrollment.validHost !== undefined) await this.#leaves.requestDue()
    }
    return TICK_MS
  }

  /** The CA is reachable again: everything that waits is retried at once. */
  #retryNow(): void {
    this.#leaves.retryNow()
    this.#enrollment.retryNow()
    this.#loop.wake()
  }
}
