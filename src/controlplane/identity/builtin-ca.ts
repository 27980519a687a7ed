/**
 * Certificates from `hostmesh ca serve`: enrolls once with a join token, then keeps the host's own certificate, those
 * of its services and the bundle fresh, and all of them on disk.
 *
 * ```
 *   stranger --join token--> member --half of life, new root--> member (new key)
 *       ^                      |  ^-- bundle: long poll --'
 *       '---- refused, and there is another token
 * ```
 *
 * Two loops: one looks every second at what is due by the wall clock (so steps of the clock and sleep need nothing
 * of their own), one follows the bundle. When the CA is away both try again every few seconds, for ever; what is
 * there is used until it ends, and not a moment longer, which is for the data plane and the peers to see to.
 */
import { X509Certificate } from 'node:crypto'
import { backoffMs } from '../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { readTextFile } from '../../lib/read-text-file.ts'
import { type CaBundle, fingerprintOf } from '../../model/ca-protocol.ts'
import type { TrustBundle } from '../../model/certificate.ts'
import { type JoinToken, parseJoinToken } from '../../model/join-token.ts'
import { Problem } from '../../model/problem.ts'
import { CaClient, type CaTrust, type HostCredential } from './ca-client.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource, CertificateWatch } from './certificate-source.ts'
import { CredentialStore } from './credential-store.ts'
import { makeSigningRequest, type SigningRequest } from './csr.ts'
import { type Renewal, renewalOf } from './renewal.ts'
import { parseCertificates, readLeaf, readRoots } from './x509.ts'

/** What the source is built from. */
export interface BuiltinSourceOptions {
  /** The name by which this host is known; the token must be for it. */
  readonly host: string
  /** `host:port`; what the token says unless given. */
  readonly server?: string | undefined
  readonly tokenFile?: string | undefined
  /** Where keys and certificates are kept; nobody else's. */
  readonly directory: string
  readonly log: Log
  /** Leaves for another datacenter are refused; any will do unless given. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
  readonly random?: Random
}

/** Due certificates are looked for this often: the longest that a step of the clock goes unnoticed. */
const TICK_MS = 1_000

/** Tries while the CA cannot be reached. Short, so that all is well soon after its return. */
const UNREACHABLE_BACKOFF = { minMs: 250, maxMs: 3_000 }

/** Tries after the CA has said no: it will hardly change its mind soon. */
const REFUSED_BACKOFF = { minMs: 500, maxMs: 30_000 }

/** Certificates asked for at the same time. */
const PARALLEL_SIGNS = 4

/** Less than this share of life left is an alarm: renewal has been tried since half of it. */
const RENEWAL_OVERDUE_SHARE = 0.2

const MAX_TOKEN_BYTES = 4_096

/** A certificate that we have, and the facts its renewal depends on. */
interface Held {
  readonly credential: HostCredential
  readonly certificate: X509Certificate
  /** That of the root that signed it; empty when none that we know did. */
  readonly rootId: string
}

/** One service that somebody watches. */
interface Wanted {
  watches: number
  held: Held | undefined
  failures: number
  /** Monotonic. */
  tryAtMs: number
  problem: Problem | undefined
  isAlarmed: boolean
}

/**
 * Reads what is on disk and begins to follow the CA.
 * @throws MeshError HM_CERT_STORE_UNWRITABLE, HM_CA_ADDRESS_INVALID
 */
export function createBuiltinSource(options: BuiltinSourceOptions): CertificateSource {
  return new BuiltinSource(options)
}

class BuiltinSource implements CertificateSource {
  private readonly options: BuiltinSourceOptions
  private readonly log: Log
  private readonly clock: Clock
  private readonly random: Random
  private readonly store: CredentialStore
  private readonly board: CertificateBoard
  private readonly wanted = new Map<string, Wanted>()
  private readonly stopping = new AbortController()
  private readonly loops: readonly Promise<void>[]
  private wakeUp = new AbortController()
  private client: CaClient | undefined
  private bundle: CaBundle | undefined
  /** Wall clock; since when we know the active root. */
  private activeSinceMs = 0
  private host: Held | undefined
  private isHostAlarmed = false
  /** The CA says that our certificate has ended, whatever our clock says. */
  private mustRenewHost = false
  /** The CA does not know us, or is not the one we know. */
  private isRefused = false
  private pendingEnrollment:
    | { readonly tokenId: string; readonly request: SigningRequest }
    | undefined
  private refusedTokenId: string | undefined
  private triedTokenId: string | undefined
  private failures = 0
  /** Monotonic; no call before. */
  private tryAtMs = 0
  private memberFailures = 0
  private memberTryAtMs = 0
  /** What is wrong with the way to the CA, and with being a member. */
  private reachProblem: Problem | undefined
  private memberProblem: Problem | undefined
  private storeProblem: Problem | undefined

  constructor(options: BuiltinSourceOptions) {
    const { log, clock = systemClock, random = systemRandom, datacenter } = options
    this.options = options
    this.log = log
    this.clock = clock
    this.random = random
    this.store = new CredentialStore(options.directory)
    if (options.server !== undefined) this.client = new CaClient(options.server)
    this.board = new CertificateBoard({
      log,
      clock,
      datacenter,
      renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
    })
    this.load()
    this.loops = [this.keepFresh(), this.followBundle()]
  }

  get description(): string {
    return `hostmesh CA at ${this.client?.address ?? 'the address of the join token'}`
  }

  watchLeaf(
    service: string,
    onLeaf: Parameters<CertificateSource['watchLeaf']>[1],
  ): CertificateWatch {
    let entry = this.wanted.get(service)
    if (entry === undefined) {
      entry = {
        watches: 0,
        held: this.loadService(service),
        failures: 0,
        tryAtMs: 0,
        problem: undefined,
        isAlarmed: false,
      }
      this.wanted.set(service, entry)
      this.wake()
    }
    const opened = entry
    opened.watches += 1
    const watch = this.board.watchLeaf(service, onLeaf)
    let isOpen = true
    return {
      close: () => {
        if (!isOpen) return
        isOpen = false
        watch.close()
        opened.watches -= 1
        if (opened.watches > 0) return
        this.wanted.delete(service)
        this.board.forget(service)
      },
    }
  }

  watchRoots(onRoots: (bundle: TrustBundle) => void): CertificateWatch {
    return this.board.watchRoots(onRoots)
  }

  problems(): readonly Problem[] {
    // One that is good for long again, such as after a clock went back, was refused nothing that matters.
    const refused = [...this.wanted.values()].flatMap((entry) =>
      entry.problem !== undefined && this.isWanting(entry) ? entry.problem : [],
    )
    return [
      ...(this.reachProblem === undefined ? [] : [this.reachProblem]),
      ...(this.memberProblem !== undefined && this.isMembershipInDoubt()
        ? [this.memberProblem]
        : []),
      ...(this.storeProblem === undefined ? [] : [this.storeProblem]),
      ...this.hostProblem(),
      ...refused,
      ...this.board.problems(),
    ]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stopping.abort()
    this.wakeUp.abort()
    this.client?.[Symbol.dispose]()
    await Promise.all(this.loops)
    this.board[Symbol.dispose]()
  }

  /** What an earlier life left. Damage is named and mended by asking the CA again. */
  private load(): void {
    try {
      const stored = this.store.readBundle()
      if (stored !== undefined) {
        this.client ??= new CaClient(stored.server)
        this.useBundle(stored.bundle)
      }
      const credential = this.store.readHost()
      if (credential !== undefined) this.host = this.hold(credential)
    } catch (thrown) {
      this.log.warn('Cannot use what is left of an earlier life; asking the CA', {
        error: describeError(thrown),
      })
    }
  }

  private loadService(service: string): Held | undefined {
    try {
      const credential = this.store.readService(service)
      if (credential === undefined) return undefined
      const held = this.hold(credential)
      this.board.offerLeaf(service, () => ({ service, ...credential }))
      return held
    } catch (thrown) {
      this.log.warn('Cannot use the certificate on disk; asking the CA', {
        service,
        error: describeError(thrown),
      })
      return undefined
    }
  }

  private hold(credential: HostCredential): Held {
    const [certificate] = parseCertificates(credential.certificatePem, 'the answer of the CA')
    if (certificate === undefined)
      throw new MeshError('HM_CA_ANSWER_MALFORMED', 'The CA sent no certificate')
    return { credential, certificate, rootId: this.rootOf(certificate) }
  }

  private rootOf(certificate: X509Certificate): string {
    for (const pem of this.bundle?.roots ?? []) {
      const root = new X509Certificate(pem)
      if (certificate.checkIssued(root) && certificate.verify(root.publicKey))
        return fingerprintOf(root)
    }
    return ''
  }

  private useBundle(bundle: CaBundle): boolean {
    const wasActive = this.bundle?.activeRoot
    const isTaken = this.board.offerRoots(() => ({
      ...readRoots(bundle.roots.join('\n'), bundle.trustDomain),
      revokedSerials: bundle.revoked,
    }))
    if (!isTaken) return false
    this.bundle = bundle
    if (wasActive !== bundle.activeRoot) this.activeSinceMs = this.clock.wallMs()
    if (this.host !== undefined) this.host = this.hold(this.host.credential)
    for (const entry of this.wanted.values())
      if (entry.held !== undefined) entry.held = this.hold(entry.held.credential)
    return true
  }

  private takeBundle(bundle: CaBundle): void {
    if (bundle.id !== this.bundle?.id) {
      if (!this.useBundle(bundle)) return
      const { address } = this.requireClient()
      this.keep(() => this.store.writeBundle({ server: address, bundle }))
      this.log.info('Bundle taken', {
        roots: bundle.roots.length,
        revoked: bundle.revoked.length,
        activeRoot: bundle.activeRoot,
      })
      this.wake()
    }
  }

  private renewalOf({ certificate, rootId }: Held): Renewal {
    const nowMs = this.clock.wallMs()
    const { bundle } = this
    // A clock that was put back must not postpone what we have long known.
    this.activeSinceMs = Math.min(this.activeSinceMs, nowMs)
    return renewalOf(
      {
        notBeforeMs: certificate.validFromDate.getTime(),
        notAfterMs: certificate.validToDate.getTime(),
        serialNumber: certificate.serialNumber,
        isRefused:
          bundle !== undefined &&
          (rootId === '' || bundle.revoked.includes(certificate.serialNumber)),
        ...(bundle !== undefined &&
          rootId !== bundle.activeRoot && {
            rootChange: {
              sinceMs: this.activeSinceMs,
              withinMs: bundle.renewWithinSeconds * 1_000,
            },
          }),
      },
      nowMs,
    )
  }

  private async keepFresh(): Promise<void> {
    const { signal } = this.stopping
    while (!signal.aborted) {
      try {
        await this.freshen()
      } catch (thrown) {
        this.noteFailure(thrown)
      }
      if (this.wakeUp.signal.aborted) this.wakeUp = new AbortController()
      else await this.clock.sleep(TICK_MS, this.wakeUp.signal)
    }
  }

  /** Does what is due now. */
  private async freshen(): Promise<void> {
    this.alarm()
    if (this.isWaiting()) return
    // Whoever has just brought a new token is waiting for us.
    if (this.clock.monotonicMs() >= this.memberTryAtMs || this.hasUntriedToken())
      await this.freshenHost()
    if (
      this.host === undefined ||
      this.host.certificate.validToDate.getTime() <= this.clock.wallMs()
    )
      return
    const due = [...this.wanted].filter(([, entry]) => this.isDue(entry))
    for (let at = 0; at < due.length && !this.isWaiting(); at += PARALLEL_SIGNS)
      await Promise.all(
        due
          .slice(at, at + PARALLEL_SIGNS)
          .map(([service, entry]) => this.freshenService(service, entry)),
      )
  }

  private isDue(entry: Wanted): boolean {
    return this.clock.monotonicMs() >= entry.tryAtMs && this.isWanting(entry)
  }

  /** Whether a service needs another certificate than the one it has. */
  private isWanting(entry: Wanted): boolean {
    if (entry.held === undefined) return true
    const { state, dueAtMs } = this.renewalOf(entry.held)
    if (state === 'notYetValid') return false
    return state !== 'fresh' || this.clock.wallMs() >= dueAtMs
  }

  /** Whether what was last wrong with our host certificate still matters: not when a clock that was ahead is right again. */
  private isMembershipInDoubt(): boolean {
    const { host } = this
    if (host === undefined || this.isRefused || this.mustRenewHost) return true
    return this.reachProblem !== undefined || this.renewalOf(host).state !== 'fresh'
  }

  private async freshenHost(): Promise<void> {
    try {
      const { host } = this
      const isFresh =
        host !== undefined && ['fresh', 'notYetValid'].includes(this.renewalOf(host).state)
      const mayEnroll = (this.isRefused || this.reachProblem !== undefined) && this.hasFreshToken()
      if (host === undefined || mayEnroll) await this.enroll()
      else if (this.mustRenewHost || !isFresh) await this.renewHost(host)
      else return
      this.accepted()
    } catch (thrown) {
      this.noteMemberFailure(thrown)
    }
  }

  private async enroll(): Promise<void> {
    const token = this.readToken()
    if (token.id === this.refusedTokenId)
      throw new MeshError(
        'HM_CA_TOKEN_REFUSED',
        `The CA has refused the join token in ${this.options.tokenFile}`,
        { hint: `Put a new one there: hostmesh ca token --host ${this.options.host}` },
      )
    // The CA that we know may be gone for good: the newest word on where it is is that of the token.
    const isElsewhere = this.client !== undefined && this.isSentElsewhere(token)
    const client = isElsewhere
      ? new CaClient(token.address)
      : (this.client ??= new CaClient(token.address))
    // The same key again when the answer was lost: the CA gives it out to that key alone.
    if (this.pendingEnrollment?.tokenId !== token.id)
      this.pendingEnrollment = { tokenId: token.id, request: makeSigningRequest() }
    const { request } = this.pendingEnrollment
    try {
      const trust = await client.fetchRoot(token)
      const { certificate, bundle } = await client.enroll(trust, token, request.csrPem)
      this.takeHost({ certificatePem: certificate, privateKeyPem: request.privateKeyPem })
      if (isElsewhere) this.client?.[Symbol.dispose]()
      this.client = client
      this.takeBundle(bundle)
      // Also when the bundle is the one we have: it is whom we have it from that is new.
      if (isElsewhere) this.keep(() => this.store.writeBundle({ server: client.address, bundle }))
      this.pendingEnrollment = undefined
      this.triedTokenId = token.id
      // What was refused to a stranger may be granted to a member.
      for (const entry of this.wanted.values()) entry.tryAtMs = 0
      this.log.info('Enrolled', { server: client.address, host: this.options.host })
    } catch (thrown) {
      if (isElsewhere && client !== this.client) client[Symbol.dispose]()
      if (errorCode(thrown) === 'HM_CA_TOKEN_REFUSED') this.refusedTokenId = token.id
      if (!this.isNetworkFailure(thrown)) this.triedTokenId = token.id
      throw thrown
    }
  }

  private readToken(): JoinToken {
    const { tokenFile, host } = this.options
    if (tokenFile === undefined)
      throw new MeshError(
        'HM_CA_NOT_ENROLLED',
        'This host has no host certificate, and no join token to get one',
        {
          hint: `Make one with: hostmesh ca token --host ${host}; then set certificates.tokenFile`,
        },
      )
    const file = readTextFile(tokenFile, MAX_TOKEN_BYTES)
    if ((file.mode & 0o007) !== 0)
      throw new MeshError(
        'HM_CA_TOKEN_EXPOSED',
        `Cannot use the join token in ${tokenFile}: everybody on this host may read it`,
        { hint: 'Run chmod 0640 on it; if strangers had access, make a new token' },
      )
    const token = parseJoinToken(file.text, tokenFile)
    if (token.host !== host)
      throw new MeshError(
        'HM_CA_TOKEN_INVALID',
        `Cannot use the join token in ${tokenFile}: it is for ${token.host}, and this host is ${host}`,
        { hint: `Make one with: hostmesh ca token --host ${host}, or correct node.name` },
      )
    return token
  }

  private async renewHost(held: Held): Promise<void> {
    const request = makeSigningRequest()
    const { certificate, bundle } = await this.requireClient().renew(
      this.requireTrust(),
      held.credential,
      request.csrPem,
    )
    this.takeHost({ certificatePem: certificate, privateKeyPem: request.privateKeyPem })
    this.takeBundle(bundle)
  }

  private takeHost(credential: HostCredential): void {
    const held = this.hold(credential)
    this.keep(() => this.store.writeHost(credential))
    this.host = held
    this.mustRenewHost = false
    this.isHostAlarmed = false
    this.log.info('Host certificate taken', {
      serialNumber: held.certificate.serialNumber,
      notAfter: held.certificate.validToDate.toISOString(),
    })
    this.wake()
  }

  private async freshenService(service: string, entry: Wanted): Promise<void> {
    const { host } = this
    if (host === undefined) return
    try {
      const request = makeSigningRequest()
      const certificatePem = await this.requireClient().sign(this.requireTrust(), host.credential, {
        service,
        csr: request.csrPem,
      })
      this.reached()
      this.takeLeaf(service, entry, { certificatePem, privateKeyPem: request.privateKeyPem })
      entry.failures = 0
      entry.tryAtMs = 0
      entry.problem = undefined
    } catch (thrown) {
      if (this.isNetworkFailure(thrown)) return this.noteFailure(thrown)
      this.noteHostVerdict(thrown)
      entry.tryAtMs =
        this.clock.monotonicMs() + backoffMs(entry.failures, REFUSED_BACKOFF, this.random)
      entry.failures += 1
      const message = `No new certificate for ${service}: ${describeError(thrown)}`
      entry.problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED', { message, subject: service })
    }
    return undefined
  }

  /** Takes a leaf that holds; one that does not stays with the CA, and what we have stays in use. */
  private takeLeaf(service: string, entry: Wanted, credential: HostCredential): void {
    const { bundle } = this
    if (bundle === undefined) return
    const candidate = { service, ...credential }
    readLeaf(
      { ...candidate, datacenter: this.options.datacenter },
      readRoots(bundle.roots.join('\n'), bundle.trustDomain),
      this.clock.wallMs(),
    )
    this.keep(() => this.store.writeService(service, credential))
    entry.held = this.hold(credential)
    entry.isAlarmed = false
    this.board.offerLeaf(service, () => candidate)
  }

  /** A disk that is full is a problem of the next restart, not of the traffic of now. */
  private keep(write: () => void): void {
    try {
      write()
      this.storeProblem = undefined
    } catch (thrown) {
      const problem = Problem.of(thrown, 'HM_CERT_NOT_KEPT')
      if (this.storeProblem === undefined)
        this.log.error('Certificates cannot be kept: a restart would need the CA', {
          problem: problem.message,
        })
      this.storeProblem = problem
    }
  }

  private async followBundle(): Promise<void> {
    const { signal } = this.stopping
    let failures = 0
    while (!signal.aborted) {
      const { host, bundle, client } = this
      if (
        host === undefined ||
        bundle === undefined ||
        client === undefined ||
        host.certificate.validToDate.getTime() <= this.clock.wallMs()
      ) {
        await this.clock.sleep(TICK_MS / 4, signal)
        continue
      }
      try {
        // After a failure an answer at once, not in half a minute: it says that the CA is back.
        const using = { have: failures === 0 ? bundle.id : '', roots: bundle.rootsId }
        const askedAtMs = this.clock.monotonicMs()
        const answer = await client.bundle(this.requireTrust(), host.credential, using)
        this.takeBundle(answer)
        failures = 0
        this.accepted()
        // One that we cannot use, or a server that does not wait: not a reason to ask without end.
        if (answer.id !== this.bundle?.id || answer.id === using.have)
          await this.clock.sleep(TICK_MS - (this.clock.monotonicMs() - askedAtMs), signal)
      } catch (thrown) {
        if (signal.aborted) return
        const isAway = this.isNetworkFailure(thrown)
        if (isAway) this.noteFailure(thrown)
        // A credential that was replaced while the poll was open closes its connections.
        else if (host === this.host) this.noteHostVerdict(thrown)
        await this.clock.sleep(
          backoffMs(failures, isAway ? UNREACHABLE_BACKOFF : REFUSED_BACKOFF, this.random),
          signal,
        )
        failures += 1
      }
    }
  }

  /** The CA knows us. */
  private accepted(): void {
    this.memberFailures = 0
    this.memberTryAtMs = 0
    this.isRefused = false
    if (this.memberProblem !== undefined) this.log.info('This host is a member of the mesh')
    this.memberProblem = undefined
    this.reached()
  }

  private isWaiting(): boolean {
    return this.clock.monotonicMs() < this.tryAtMs
  }

  private isNetworkFailure(thrown: unknown): boolean {
    return ['HM_CA_UNREACHABLE', 'HM_CA_RATE_LIMITED', 'HM_CA_BUSY', 'HM_INTERNAL'].includes(
      errorCode(thrown),
    )
  }

  private noteFailure(thrown: unknown): void {
    if (this.stopping.signal.aborted) return
    this.tryAtMs =
      this.clock.monotonicMs() + backoffMs(this.failures, UNREACHABLE_BACKOFF, this.random)
    this.failures += 1
    const problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED')
    if (this.reachProblem === undefined)
      this.log.warn('The CA does not answer; what is there stays in use until it ends', {
        problem: problem.message,
      })
    this.reachProblem = problem
  }

  private reached(): void {
    this.failures = 0
    this.tryAtMs = 0
    if (this.reachProblem === undefined) return
    this.reachProblem = undefined
    this.log.info('The CA answers again')
    for (const entry of this.wanted.values()) entry.tryAtMs = 0
    this.memberTryAtMs = 0
    this.wake()
  }

  /** What the CA thinks of our host certificate. */
  private noteHostVerdict(thrown: unknown): void {
    const code = errorCode(thrown)
    if (code === 'HM_CA_HOST_EXPIRED') {
      this.mustRenewHost = true
      this.wake()
    } else if (code === 'HM_CA_HOST_REFUSED' || code === 'HM_CA_UNTRUSTED')
      this.noteMemberFailure(thrown)
  }

  private noteMemberFailure(thrown: unknown): void {
    if (this.stopping.signal.aborted) return
    if (this.isNetworkFailure(thrown)) {
      this.noteFailure(thrown)
      return
    }
    this.memberTryAtMs =
      this.clock.monotonicMs() + backoffMs(this.memberFailures, REFUSED_BACKOFF, this.random)
    this.memberFailures += 1
    const problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED', { subject: 'this host' })
    if (this.memberProblem?.message !== problem.message)
      this.log.warn('This host is not a member of the mesh, or not for long', {
        problem: problem.message,
      })
    this.memberProblem = problem
    // What we have stays: the refusal may be that of an impostor, or of a CA that is put right again.
    if (['HM_CA_HOST_REFUSED', 'HM_CA_UNTRUSTED'].includes(errorCode(thrown))) this.isRefused = true
  }

  /** Whether there is a token for a CA that has refused us, or for one elsewhere, that was not refused itself. */
  private hasFreshToken(): boolean {
    try {
      const token = this.readToken()
      return (this.isRefused || this.isSentElsewhere(token)) && token.id !== this.refusedTokenId
    } catch {
      return false
    }
  }

  private isSentElsewhere(token: JoinToken): boolean {
    return this.options.server === undefined && token.address !== this.client?.address
  }

  /** Whether a host that needs a token has one that the CA has not judged. */
  private hasUntriedToken(): boolean {
    if (this.host !== undefined && !this.isRefused) return false
    try {
      return this.readToken().id !== this.triedTokenId
    } catch {
      return false
    }
  }

  private requireClient(): CaClient {
    if (this.client === undefined)
      throw new MeshError('HM_CA_NOT_ENROLLED', 'Nobody has said yet where the CA is')
    return this.client
  }

  private requireTrust(): CaTrust {
    const { bundle } = this
    if (bundle === undefined)
      throw new MeshError('HM_CA_NOT_ENROLLED', 'This host has no roots of the CA yet')
    return { trustDomain: bundle.trustDomain, rootsPem: bundle.roots }
  }

  private wake(): void {
    this.wakeUp.abort()
  }

  /** One line in the log for each certificate whose renewal is overdue. */
  private alarm(): void {
    for (const [service, entry] of this.wanted) {
      if (entry.held === undefined || entry.isAlarmed) continue
      if (!this.isOverdue(entry.held)) continue
      entry.isAlarmed = true
      this.log.error('The certificate of a service ends soon and cannot be renewed', {
        service,
        notAfter: entry.held.certificate.validToDate.toISOString(),
      })
    }
    if (this.host === undefined || this.isHostAlarmed || !this.isOverdue(this.host)) return
    this.isHostAlarmed = true
    this.log.error('The certificate of this host ends soon and cannot be renewed', {
      notAfter: this.host.certificate.validToDate.toISOString(),
    })
  }

  private isOverdue(held: Held): boolean {
    const { state } = this.renewalOf(held)
    return state === 'overdue' || state === 'expired'
  }

  private hostProblem(): readonly Problem[] {
    if (this.host === undefined) return []
    const { state } = this.renewalOf(this.host)
    if (state === 'fresh' || state === 'due') return []
    const { validFromDate, validToDate } = this.host.certificate
    const says: Record<typeof state, string> = {
      overdue: 'ends soon and has not been renewed',
      expired: 'has ended',
      notYetValid: 'does not hold yet',
    }
    return [
      new Problem(
        state === 'overdue' ? 'HM_CERT_NOT_RENEWED' : 'HM_CERT_ENDED',
        `The certificate of this host ${says[state]}: it is valid from ${validFromDate.toISOString()} to ${validToDate.toISOString()}, and the clock of this host says ${new Date(this.clock.wallMs()).toISOString()}`,
        { subject: 'this host' },
      ),
    ]
  }
}
