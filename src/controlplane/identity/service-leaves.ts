/**
 * Requests, renews and stores the certificates of this host's services.
 */
import { Retry } from '../../lib/backoff.ts'
import { describeError } from '../../lib/errors.ts'
import { forEachConcurrent } from '../../lib/for-each-concurrent.ts'
import { Problem } from '../../model/problem.ts'
import type { HostCredential } from './ca-client.ts'
import { isNetworkFailure, REFUSED_BACKOFF } from './ca-connection.ts'
import type { CertificateBoard } from './certificate-board.ts'
import { type HeldCredential, holdCredential } from './credential-store.ts'
import { makeSigningRequest } from './csr.ts'
import type { CaParts, Enrollment } from './enrollment.ts'
import { isOverdue } from './renewal.ts'
import { readLeaf } from './x509.ts'

/** What is needed to request and store leaves. */
export interface ServiceLeavesOptions extends CaParts {
  readonly enrollment: Enrollment
  readonly board: CertificateBoard
  /** Leaves for another datacenter are rejected. Default: any datacenter. */
  readonly datacenter: string | undefined
}

/** One watched service. */
interface Entry {
  held: HeldCredential | undefined
  readonly retry: Retry
  problem: Problem | undefined
  isOverdueLogged: boolean
}

/** Most certificate requests at the same time. */
const PARALLEL_SIGNS = 4

/** The leaves of all watched services. */
export class ServiceLeaves {
  readonly #options: ServiceLeavesOptions
  readonly #entries = new Map<string, Entry>()

  constructor(options: ServiceLeavesOptions) {
    this.#options = options
  }

  /** Keeps the leaf of `service` current until the result is disposed; starts with the one on disk. */
  open(service: string): Disposable {
    const { clock, random, onChange } = this.#options
    this.#entries.set(service, {
      held: this.#restore(service),
      retry: new Retry(REFUSED_BACKOFF, clock, random),
      problem: undefined,
      isOverdueLogged: false,
    })
    onChange()
    return { [Symbol.dispose]: () => this.#entries.delete(service) }
  }

  /** Requests those that are due. */
  async requestDue(): Promise<void> {
    const { connection, signal } = this.#options
    const due = [...this.#entries].filter(
      ([, entry]) => entry.retry.isDue && this.#isWanting(entry),
    )
    await forEachConcurrent(due, PARALLEL_SIGNS, signal, async ([service, entry]) => {
      if (connection.isDue) await this.#sign(service, entry)
    })
  }

  /** Makes the next attempts after refusals due at once. */
  retryNow(): void {
    for (const { retry } of this.#entries.values()) retry.makeDue()
  }

  /** Problems of services whose new certificate the CA refused, or this host rejected. */
  problems(): readonly Problem[] {
    // A refusal does not matter if the leaf is fresh again, for example after a clock was set back.
    return [...this.#entries.values()].flatMap((entry) =>
      entry.problem !== undefined && this.#isWanting(entry) ? entry.problem : [],
    )
  }

  /** Logs once for each leaf whose renewal is overdue. */
  logOverdue(): void {
    for (const [service, entry] of this.#entries) {
      if (entry.held === undefined || entry.isOverdueLogged) continue
      if (!isOverdue(this.#options.bundle.renewalOf(entry.held))) continue
      entry.isOverdueLogged = true
      this.#options.log.error('The certificate of a service ends soon and cannot be renewed', {
        service,
        notAfter: entry.held.certificate.validToDate.toISOString(),
      })
    }
  }

  #restore(service: string): HeldCredential | undefined {
    const { store, board, log } = this.#options
    try {
      const credential = store.readService(service)
      if (credential === undefined) return undefined
      const held = holdCredential(credential)
      board.offerLeaf(service, () => ({ service, ...credential }))
      return held
    } catch (thrown) {
      log.warn('Cannot use the certificate on disk; asking the CA', {
        service,
        error: describeError(thrown),
      })
      return undefined
    }
  }

  /** Whether a service needs a new certificate. */
  #isWanting({ held }: Entry): boolean {
    if (held === undefined) return true
    const { state, dueAtMs } = this.#options.bundle.renewalOf(held)
    if (state === 'notYetValid') return false
    return state !== 'fresh' || this.#options.clock.wallMs() >= dueAtMs
  }

  async #sign(service: string, entry: Entry): Promise<void> {
    const { connection, bundle, enrollment, signal } = this.#options
    const { host } = enrollment
    if (host === undefined) return
    try {
      const { csrPem, privateKeyPem } = makeSigningRequest()
      const request = { service, csr: csrPem }
      const certificatePem = await connection.client.sign(bundle.trust, host.credential, request)
      connection.noteAnswer()
      this.#take(service, entry, { certificatePem, privateKeyPem })
      entry.retry.reset()
      entry.problem = undefined
    } catch (thrown) {
      if (signal.aborted) return
      if (isNetworkFailure(thrown)) {
        connection.noteFailure(thrown)
        return
      }
      enrollment.noteRefusal(thrown)
      entry.retry.failed()
      const message = `No new certificate for ${service}: ${describeError(thrown)}`
      entry.problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED', { message, subject: service })
    }
  }

  /** Accepts a valid leaf. An invalid one is discarded, and the current one stays in use. */
  #take(service: string, entry: Entry, credential: HostCredential): void {
    const { bundle, store, board, datacenter, clock } = this.#options
    const leaf = { service, ...credential }
    readLeaf({ ...leaf, datacenter }, bundle.roots, clock.wallMs())
    store.writeService(service, credential)
    entry.held = holdCredential(credential)
    entry.isOverdueLogged = false
    board.offerLeaf(service, () => leaf)
  }
}
