/**
 * Enrolls this host in the mesh with a join token, and maintains its membership: its own certificate, which it needs
 * for all other calls to the CA.
 *
 * ```
 *   notEnrolled --join token--> member --half of life, new root--> member (new key)
 *                             |  ^
 *    the CA says: it is over  |  | renewed
 *                             v  |
 *                            ended          refused: from member and ended, when the CA does not know us
 *                                                    (any more); to member by a new token, or when it knows us again
 * ```
 */
import { Retry } from '../../lib/backoff.ts'
import type { Clock, Random } from '../../lib/clock.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import type { JoinToken } from '../../model/join-token.ts'
import { Problem } from '../../model/problem.ts'
import { CaClient, type HostCredential } from './ca-client.ts'
import { type CaConnection, isNetworkFailure, REFUSED_BACKOFF } from './ca-connection.ts'
import { type CredentialStore, type HeldCredential, holdCredential } from './credential-store.ts'
import { makeSigningRequest, type SigningRequest } from './csr.ts'
import { isOverdue } from './renewal.ts'
import { readTokenFile } from './token-file.ts'
import type { TrustedBundle } from './trusted-bundle.ts'

/** What the parts of the built-in source share. */
export interface CaParts {
  readonly connection: CaConnection
  readonly bundle: TrustedBundle
  readonly store: CredentialStore
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  /** Ends all calls; a failure after it has aborted is ignored. */
  readonly signal: AbortSignal
  /** Called when there is something to do at once. */
  readonly onChange: () => void
}

/** What enrollment needs. */
export interface EnrollmentOptions extends CaParts {
  /** The name of this host; the token must be for it. */
  readonly host: string
  readonly tokenFile: string | undefined
  /** Called after enrollment: the CA may now grant what it refused before. */
  readonly onEnrolled: () => void
}

/** The state of this host at the CA. Only a host that is not enrolled has no certificate. */
type Membership =
  | { readonly state: 'notEnrolled' }
  | { readonly state: 'member'; readonly host: HeldCredential }
  /** The CA reports that the certificate has expired, whatever our clock says. */
  | { readonly state: 'ended'; readonly host: HeldCredential }
  /**
   * The CA does not accept us, or is not the CA that we trust. Our certificate stays in use: the refusal may come from
   * an impostor, or from a CA that will be repaired.
   */
  | { readonly state: 'refused'; readonly host: HeldCredential; readonly isEnded: boolean }

/** The membership of this host. */
export class Enrollment {
  readonly #options: EnrollmentOptions
  readonly #retry: Retry
  #membership: Membership = { state: 'notEnrolled' }
  #problem: Problem | undefined
  #isOverdueLogged = false
  /** The key sent with a token whose answer may have been lost: the CA issues it again to that key only. */
  #pending: { readonly tokenId: string; readonly request: SigningRequest } | undefined
  /** The last token with a result other than a network failure; below, the last one that the CA refused. */
  #judgedTokenId: string | undefined
  #refusedTokenId: string | undefined

  constructor(options: EnrollmentOptions) {
    this.#options = options
    this.#retry = new Retry(REFUSED_BACKOFF, options.clock, options.random)
  }

  /** The host's own certificate; undefined while it is not enrolled. */
  get host(): HeldCredential | undefined {
    return this.#membership.state === 'notEnrolled' ? undefined : this.#membership.host
  }

  /** The same, unless it has expired by our clock. */
  get validHost(): HeldCredential | undefined {
    const { host } = this
    if (host === undefined) return undefined
    const hasEnded = host.certificate.validToDate.getTime() <= this.#options.clock.wallMs()
    return hasEnded ? undefined : host
  }

  /** Problems of the membership, and of the certificate of the host. */
  problems(): readonly Problem[] {
    const membership = this.#problem !== undefined && this.#isInDoubt() ? [this.#problem] : []
    return [...membership, ...this.#certificateProblem()]
  }

  /** Uses the certificate stored by an earlier run. @throws MeshError HM_CA_ANSWER_MALFORMED */
  restore(credential: HostCredential): void {
    this.#membership = { state: 'member', host: holdCredential(credential) }
  }

  /** Does what is due: enrolls, or renews the certificate. */
  async enrollOrRenew(): Promise<void> {
    // A new token is tried at once: the operator waits for it.
    if (!this.#retry.isDue && !this.#hasUnjudgedToken()) return
    try {
      const membership = this.#membership
      if (membership.state === 'notEnrolled' || this.#mayEnroll()) await this.#enroll()
      else if (isEnded(membership) || this.#isRenewalDue(membership.host))
        await this.#renew(membership.host)
      else return
      this.noteAccepted()
    } catch (thrown) {
      this.#noteFailure(thrown)
    }
  }

  /** Logs once when renewal is overdue. */
  logOverdue(): void {
    const { host } = this
    if (host === undefined || this.#isOverdueLogged) return
    if (!isOverdue(this.#options.bundle.renewalOf(host))) return
    this.#isOverdueLogged = true
    this.#options.log.error('The certificate of this host ends soon and cannot be renewed', {
      notAfter: host.certificate.validToDate.toISOString(),
    })
  }

  /** Makes the next attempt after a refusal due at once. */
  retryNow(): void {
    this.#retry.makeDue()
  }

  /** Records that the CA accepts us. */
  noteAccepted(): void {
    this.#retry.reset()
    if (this.#membership.state === 'refused') {
      const { host, isEnded: hasEnded } = this.#membership
      this.#membership = { state: hasEnded ? 'ended' : 'member', host }
    }
    if (this.#problem !== undefined) this.#options.log.info('This host is a member of the mesh')
    this.#problem = undefined
    this.#options.connection.noteAnswer()
  }

  /** Records that the CA refused a call made with the host's certificate; refusals for other reasons are ignored. */
  noteRefusal(thrown: unknown): void {
    const membership = this.#membership
    const code = errorCode(thrown)
    if (membership.state === 'notEnrolled') return
    if (code === 'HM_CA_HOST_EXPIRED') {
      this.#membership =
        membership.state === 'refused'
          ? { ...membership, isEnded: true }
          : { state: 'ended', host: membership.host }
      this.#options.onChange()
    } else if (isMembershipRefused(code)) this.#noteFailure(thrown)
  }

  async #enroll(): Promise<void> {
    const { connection, bundle, log, host } = this.#options
    const token = this.#readToken()
    if (token.id === this.#refusedTokenId)
      throw new MeshError(
        'HM_CA_TOKEN_REFUSED',
        `The CA has refused the join token in ${this.#options.tokenFile}`,
        { hint: `Put a new one there: hostmesh ca token --host ${host}` },
      )
    connection.locate(token.address)
    // The CA that we trust may be gone for good: the token has the newest address.
    const client = connection.isElsewhere(token.address)
      ? new CaClient(token.address)
      : connection.client
    if (this.#pending?.tokenId !== token.id)
      this.#pending = { tokenId: token.id, request: makeSigningRequest() }
    const { csrPem, privateKeyPem } = this.#pending.request
    try {
      const trust = await client.fetchRoot(token)
      const answer = await client.enroll(trust, token, csrPem)
      const held = holdCredential({ certificatePem: answer.certificate, privateKeyPem })
      connection.replace(client)
      bundle.take(answer.bundle, client.address)
      this.#takeHost(held)
    } catch (thrown) {
      if (client.address !== connection.address) client[Symbol.dispose]()
      if (errorCode(thrown) === 'HM_CA_TOKEN_REFUSED') this.#refusedTokenId = token.id
      if (!isNetworkFailure(thrown)) this.#judgedTokenId = token.id
      throw thrown
    }
    this.#pending = undefined
    this.#judgedTokenId = token.id
    this.#options.onEnrolled()
    log.info('Enrolled', { server: client.address, host })
  }

  async #renew(held: HeldCredential): Promise<void> {
    const { connection, bundle } = this.#options
    const { client } = connection
    const { csrPem, privateKeyPem } = makeSigningRequest()
    const answer = await client.renew(bundle.trust, held.credential, csrPem)
    const renewed = holdCredential({ certificatePem: answer.certificate, privateKeyPem })
    bundle.take(answer.bundle, client.address)
    this.#takeHost(renewed)
  }

  #takeHost(host: HeldCredential): void {
    const { store, log, onChange } = this.#options
    store.writeHost(host.credential)
    this.#membership = { state: 'member', host }
    this.#isOverdueLogged = false
    log.info('Host certificate taken', {
      serialNumber: host.certificate.serialNumber,
      notAfter: host.certificate.validToDate.toISOString(),
    })
    onChange()
  }

  #noteFailure(thrown: unknown): void {
    if (this.#options.signal.aborted) return
    if (isNetworkFailure(thrown)) {
      this.#options.connection.noteFailure(thrown)
      return
    }
    this.#retry.failed()
    const problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED', { subject: 'this host' })
    if (this.#problem?.message !== problem.message)
      this.#options.log.warn('This host is not a member of the mesh, or not for long', {
        problem: problem.message,
      })
    this.#problem = problem
    const membership = this.#membership
    if (membership.state !== 'notEnrolled' && isMembershipRefused(errorCode(thrown)))
      this.#membership = {
        state: 'refused',
        host: membership.host,
        isEnded: isEnded(membership),
      }
  }

  #readToken(): JoinToken {
    return readTokenFile(this.#options.tokenFile, this.#options.host)
  }

  /** Whether there is an unrefused token, after a refusal or, while our CA is unreachable, for a CA elsewhere. */
  #mayEnroll(): boolean {
    const { connection } = this.#options
    const isRefused = this.#membership.state === 'refused'
    if (!isRefused && connection.problem === undefined) return false
    try {
      const token = this.#readToken()
      return (
        (isRefused || connection.isElsewhere(token.address)) && token.id !== this.#refusedTokenId
      )
    } catch {
      return false
    }
  }

  /** Whether a host that needs a token has one that has not been tried, or only met network failures. */
  #hasUnjudgedToken(): boolean {
    if (this.#membership.state === 'member' || this.#membership.state === 'ended') return false
    try {
      return this.#readToken().id !== this.#judgedTokenId
    } catch {
      return false
    }
  }

  #isRenewalDue(host: HeldCredential): boolean {
    const { state } = this.#options.bundle.renewalOf(host)
    return state !== 'fresh' && state !== 'notYetValid'
  }

  /** Whether the last problem still matters: it does not when a clock that was ahead is correct again. */
  #isInDoubt(): boolean {
    const membership = this.#membership
    if (membership.state !== 'member' || this.#options.connection.problem !== undefined) return true
    return this.#options.bundle.renewalOf(membership.host).state !== 'fresh'
  }

  #certificateProblem(): readonly Problem[] {
    const { host } = this
    if (host === undefined) return []
    const { state } = this.#options.bundle.renewalOf(host)
    if (state === 'fresh' || state === 'due') return []
    const { validFromDate, validToDate } = host.certificate
    const says: Record<typeof state, string> = {
      overdue: 'ends soon and has not been renewed',
      expired: 'has ended',
      notYetValid: 'does not hold yet',
    }
    const nowText = new Date(this.#options.clock.wallMs()).toISOString()
    return [
      new Problem(
        state === 'overdue' ? 'HM_CERT_NOT_RENEWED' : 'HM_CERT_ENDED',
        `The certificate of this host ${says[state]}: it is valid from ${validFromDate.toISOString()} to ${validToDate.toISOString()}, and the clock of this host says ${nowText}`,
        { subject: 'this host' },
      ),
    ]
  }
}

function isEnded(membership: Membership): boolean {
  return membership.state === 'ended' || (membership.state === 'refused' && membership.isEnded)
}

/** Whether the code means that the CA does not accept us, or is not the CA that we trust. */
function isMembershipRefused(code: string): boolean {
  return code === 'HM_CA_HOST_REFUSED' || code === 'HM_CA_UNTRUSTED'
}
