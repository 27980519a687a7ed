/**
 * The CA itself: who may have which certificate, and what everybody is to trust (docs/ca-protocol.md).
 *
 * Knows no network: the server and the commands call it. Holds the lock of its directory, so there is one office
 * at a time. Every change is on the disk before anybody hears of it; a certificate is in the journal before it is
 * handed out. Whatever cannot be decided is refused. No message contains a secret or a key.
 */
import { createHash, type KeyObject, X509Certificate } from 'node:crypto'
import { existsSync, readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { isSameKey, readSigningRequest } from '../controlplane/identity/csr.ts'
import type { Clock } from '../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import { tryLockFile } from '../lib/file-lock.ts'
import type { Log } from '../lib/log.ts'
import { singleUriSan } from '../lib/uri-san.ts'
import { type CaBundle, caUri, fingerprintOf, hostUri } from '../model/ca-protocol.ts'
import { CA_ADDRESS, formatJoinToken, HOST_NAME } from '../model/join-token.ts'
import { isServiceName } from '../model/spiffe-id.ts'
import { type CaHost, type CaState, type CaToken, readState, writeState } from './ca-state.ts'
import { BACKDATE_MS, certify, certifyService, requireDatacenter } from './issue-certificate.ts'
import { hashSecret, isSecret, newTokenSecret } from './join-secret.ts'
import { type Issue, Journal } from './journal.ts'
import { readAuthority, type StoredAuthority, writeRoot } from './roots.ts'
import {
  type HostProgress,
  isSpread,
  laggingHosts,
  newestCertificate,
  progressOf,
  type RotationNow,
  withoutRetiring,
  withRotationAborted,
  withTargetSigning,
} from './rotation.ts'

/** How long things live, milliseconds. */
export interface CaLifetimes {
  readonly leafMs: number
  readonly hostMs: number
  /** So long after its end a host certificate may still be renewed. */
  readonly graceMs: number
  /** Within this time hosts follow a change of the active root. */
  readonly renewWithinMs: number
}

/** What the CA does unless told otherwise. */
export const DEFAULT_LIFETIMES: CaLifetimes = {
  leafMs: 24 * 3_600_000,
  hostMs: 7 * 86_400_000,
  graceMs: 7 * 86_400_000,
  renewWithinMs: 300_000,
}

/** Says what a host runs, beyond its token: the catalog. May be wrong for a while, must not throw for "no". */
export type RunsService = (host: string, service: string) => Promise<boolean>

/** What an office is opened with. */
export interface CaOfficeOptions {
  readonly directory: string
  readonly log: Log
  readonly clock: Clock
  readonly lifetimes?: Partial<CaLifetimes>
  readonly runsService?: RunsService
}

/** A host that has proved itself. */
export interface HostCaller {
  readonly name: string
  readonly certificate: X509Certificate
}

/** What a token is made for. */
export interface TokenRequest {
  readonly host: string
  readonly datacenter: string
  readonly services: readonly string[]
  readonly ttlMs: number
  /** `host:port`; the server's own unless given. */
  readonly address?: string | undefined
}

/** What is revoked; at least one is given. */
export interface RevokeRequest {
  readonly host?: string | undefined
  readonly service?: string | undefined
  readonly serial?: string | undefined
}

/** How a rotation stands. */
export interface RotationStatus {
  readonly phase: 'none' | 'spreading' | 'reissuing'
  readonly activeRoot: string
  readonly retiringRoot: string | null
  readonly startedAtMs: number | null
  readonly hosts: readonly HostProgress[]
  readonly lagging: readonly string[]
}

/** The CA at a glance; no secret, no key. */
export interface CaStatus {
  readonly trustDomain: string
  readonly address: string | null
  readonly roots: readonly { readonly id: string; readonly notAfterMs: number }[]
  readonly activeRoot: string
  readonly rotation: RotationStatus
  readonly certificates: number
  readonly revoked: number
  readonly openTokens: readonly { readonly host: string; readonly expiresAtMs: number }[]
  readonly hosts: readonly {
    readonly name: string
    readonly datacenter: string
    readonly services: readonly string[]
    readonly certificates: number
    readonly notAfterMs: number
  }[]
  /** Since this office was opened. */
  readonly failedEnrollments: number
}

const MAX_HOSTS = 8_000
const MAX_TOKENS = 10_000
const MAX_CERTIFICATES_PER_HOST = 4_096
/** Certificates of its own that a host may present: the newest, and those before it whose successor was lost. */
const KEPT_HOST_CERTIFICATES = 4
const MAX_TOKEN_TTL_MS = 30 * 86_400_000
/** Revocations are listed for so long after the end: by the clock of a host it may not have come yet. */
const KEPT_REVOKED_MS = 86_400_000
/** And the last so many in any case: our own clock may be the one that runs ahead, and what is forgotten is forgotten. */
const KEPT_REVOKED = 1_000

/** The open CA of one directory. */
export class CaOffice implements Disposable {
  readonly trustDomain: string
  readonly lifetimes: CaLifetimes
  readonly clock: Clock
  private readonly directory: string
  private readonly log: Log
  private readonly runsService: RunsService
  private readonly lock: Disposable
  private readonly journal: Journal
  private readonly authorities = new Map<string, StoredAuthority>()
  private readonly listeners = new Set<() => void>()
  private state: CaState
  private current: CaBundle
  /** The roots each host has said it uses. Not kept: after a restart they say it again within moments. */
  private readonly rootsIdByHost = new Map<string, string>()
  private failedEnrollments = 0

  /**
   * Opens the CA that `hostmesh ca init` made.
   * @throws MeshError HM_CA_LOCKED when a server or command works on it, HM_CA_STATE_INVALID,
   * HM_CA_JOURNAL_INVALID, and as readAuthority
   */
  constructor(options: CaOfficeOptions) {
    const { directory, log, clock } = options
    this.directory = directory
    this.log = log
    this.clock = clock
    this.lifetimes = { ...DEFAULT_LIFETIMES, ...options.lifetimes }
    this.runsService = options.runsService ?? (async () => false)
    // Before the lock: its file must not appear in a directory that is no CA's.
    this.trustDomain = readAuthority(directory).trustDomain
    const lock = tryLockFile(join(directory, 'lock'))
    if (lock === undefined)
      throw new MeshError('HM_CA_LOCKED', `Cannot open the CA in ${directory}: it is in use`, {
        hint: 'Another hostmesh ca works on it; wait for it, or stop it',
      })
    this.lock = lock
    try {
      const journalPath = join(directory, 'journal.jsonl')
      this.state = this.stateThatFits(readState(directory), existsSync(journalPath))
      this.dropOrphans()
      for (const { id, name } of this.state.roots) {
        const authority = readAuthority(directory, name)
        if (fingerprintOf(authority.certificate) !== id)
          throw new MeshError(
            'HM_CA_STATE_INVALID',
            `Cannot open the CA in ${directory}: ${name}.pem is not the root that state.json names`,
            { hint: 'Restore the whole directory from one backup' },
          )
        this.authorities.set(id, authority)
      }
      this.journal = new Journal(journalPath, clock.wallMs())
    } catch (thrown) {
      lock[Symbol.dispose]()
      throw thrown
    }
    this.current = this.makeBundle()
    this.upkeep()
  }

  [Symbol.dispose](): void {
    this.listeners.clear()
    this.journal[Symbol.dispose]()
    this.lock[Symbol.dispose]()
  }

  /** What every host is to trust now. */
  get bundle(): CaBundle {
    return this.current
  }

  /** Calls back after every change of {@link CaOffice.bundle}. */
  onBundle(listener: () => void): Disposable {
    this.listeners.add(listener)
    return { [Symbol.dispose]: () => this.listeners.delete(listener) }
  }

  /** Forgets what has expired and takes a rotation on when it can go on; called every few seconds. */
  upkeep(): void {
    const nowMs = this.clock.wallMs()
    this.journal.prune(nowMs)
    const listed = this.state.revoked
    const revoked = listed.filter(
      ({ notAfterMs }, at) =>
        at >= listed.length - KEPT_REVOKED || notAfterMs + KEPT_REVOKED_MS > nowMs,
    )
    const tokens = this.state.tokens.filter(({ expiresAtMs }) => expiresAtMs > nowMs)
    if (revoked.length < this.state.revoked.length || tokens.length < this.state.tokens.length)
      this.change({ ...this.state, revoked, tokens })
    this.advance()
  }

  /** Remembers where hosts reach the server; goes into tokens. */
  setAddress(address: string): void {
    if (this.state.address !== address) this.change({ ...this.state, address })
  }

  /** A certificate for the server of this CA and a key, by the root that every host knows. */
  certifyServer(publicKey: KeyObject): {
    readonly certificatePem: string
    readonly notAfterMs: number
  } {
    const nowMs = this.clock.wallMs()
    const authority = this.authorityOf(this.oldestRoot())
    const lifetimeMs = this.lifetimes.hostMs
    const certificatePem = certify(
      authority,
      {
        publicKey,
        uri: caUri(this.trustDomain),
        purpose: 'server',
        what: 'a certificate for the CA server',
      },
      { nowMs, lifetimeMs, backdateMs: backdate(lifetimeMs) },
    )
    return { certificatePem, notAfterMs: nowMs + lifetimeMs }
  }

  /** The roots, PEM, each once. */
  rootsPem(): readonly string[] {
    return this.state.roots.map(({ id }) => this.authorityOf(id).certificatePem)
  }

  /**
   * Makes a join token.
   * @throws MeshError HM_CA_NAME_INVALID, HM_CA_DATACENTER_INVALID, HM_CA_TOKEN_REQUEST_INVALID
   */
  createToken(request: TokenRequest): { readonly token: string; readonly expiresAtMs: number } {
    const { host, datacenter, services, ttlMs } = request
    if (!HOST_NAME.test(host))
      throw new MeshError(
        'HM_CA_NAME_INVALID',
        `Cannot make a token for ${JSON.stringify(host.slice(0, 256))}: it is no host name`,
        { hint: 'Use A-Z, a-z, 0-9, "-", "." and "_", at most 128 characters; as node.name says' },
      )
    requireDatacenter(datacenter)
    for (const service of services)
      if (!isServiceName(service))
        throw new MeshError(
          'HM_CA_NAME_INVALID',
          `Cannot make a token for ${JSON.stringify(service.slice(0, 256))}: it is not a service name`,
        )
    const address = request.address ?? this.state.address
    if (address === null || !CA_ADDRESS.test(address))
      throw new MeshError(
        'HM_CA_TOKEN_REQUEST_INVALID',
        address === null
          ? 'Cannot make a token: nobody knows yet where this CA is reached'
          : `Cannot make a token with the address ${JSON.stringify(address.slice(0, 256))}`,
        { hint: 'Give --address HOST:PORT, or start hostmesh ca serve with --advertise' },
      )
    if (!(ttlMs > 0 && ttlMs <= MAX_TOKEN_TTL_MS))
      throw new MeshError(
        'HM_CA_TOKEN_REQUEST_INVALID',
        'Cannot make a token that lives longer than 30 days',
      )
    if (this.state.tokens.length >= MAX_TOKENS)
      throw new MeshError(
        'HM_CA_TOKEN_REQUEST_INVALID',
        `Cannot have more than ${MAX_TOKENS} tokens`,
        {
          hint: 'Wait until some expire; give shorter lifetimes',
        },
      )
    const { id, secret } = newTokenSecret()
    const expiresAtMs = this.clock.wallMs() + ttlMs
    const kept: CaToken = {
      id,
      secretHash: hashSecret(secret),
      host,
      datacenter,
      services: [...new Set(services)],
      expiresAtMs,
      usedByKey: null,
    }
    this.change({ ...this.state, tokens: [...this.state.tokens, kept] })
    this.log.info('Join token made', { host, services, expires: timeText(expiresAtMs) })
    const fingerprint = this.oldestRoot()
    return { token: formatJoinToken({ address, fingerprint, id, secret, host }), expiresAtMs }
  }

  /**
   * Makes a stranger with a token a host. `from` is for the log.
   * @throws MeshError HM_CA_TOKEN_REFUSED, HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED, HM_CA_RATE_LIMITED, HM_CA_BUSY
   */
  enroll(
    request: {
      readonly id: string
      readonly secret: string
      readonly host: string
      readonly csr: string
    },
    from: string,
  ): string {
    const token = this.state.tokens.find(({ id }) => id === request.id)
    // Also for an unknown id, so that time does not say which ids exist.
    const isRight = isSecret(request.secret, token?.secretHash ?? hashSecret(''))
    const nowMs = this.clock.wallMs()
    const refuse = (reason: string): MeshError => {
      this.failedEnrollments += 1
      this.log.warn('Enrollment refused', { reason, from, host: request.host, token: request.id })
      return new MeshError(
        'HM_CA_TOKEN_REFUSED',
        `The CA refuses the join token for ${request.host}: it is unknown, used, expired or for another host`,
        { hint: 'Make a new one with: hostmesh ca token; the log of the CA has the reason' },
      )
    }
    if (token === undefined) throw refuse('unknown token')
    if (!isRight) throw refuse('wrong secret')
    if (token.expiresAtMs <= nowMs) throw refuse('expired token')
    if (token.host !== request.host) throw refuse(`token of ${token.host}`)
    const publicKey = readSigningRequest(request.csr)
    const keyHash = hashKey(publicKey)
    if (token.usedByKey !== null && token.usedByKey !== keyHash) throw refuse('used token')
    // An operator has made room for one certificate; asking for it again and again is the host's doing.
    if (token.usedByKey !== null) this.requireRoom(token.host)
    const others = this.state.hosts.filter(({ name }) => name !== token.host)
    if (others.length >= MAX_HOSTS)
      throw new MeshError('HM_CA_BUSY', `The CA has ${MAX_HOSTS} hosts, which is its limit`)
    const issued = this.issueHost(token.host, publicKey)
    const host: CaHost = {
      name: token.host,
      datacenter: token.datacenter,
      services: token.services,
      enrolledAtMs: nowMs,
      // A machine that was set up again: whoever has the certificate of its former life is nobody now.
      certificates: [issued.entry],
    }
    this.rootsIdByHost.delete(token.host)
    this.change({
      ...this.state,
      hosts: [...others, host],
      tokens: this.state.tokens.map((one) =>
        one === token ? { ...one, usedByKey: keyHash } : one,
      ),
    })
    this.log.info('Host enrolled', { host: host.name, from, services: host.services })
    return issued.certificatePem
  }

  /**
   * The host that a client certificate belongs to; TLS has proved that the caller has its key.
   * @throws MeshError HM_CA_CERTIFICATE_REQUIRED, HM_CA_HOST_REFUSED, HM_CA_HOST_EXPIRED
   */
  identifyHost(
    certificate: X509Certificate | undefined,
    options: { readonly mayHaveExpired?: boolean } = {},
  ): HostCaller {
    if (certificate === undefined)
      throw new MeshError('HM_CA_CERTIFICATE_REQUIRED', 'This call needs a host certificate')
    const uri = singleUriSan(certificate.raw) ?? ''
    const prefix = hostUri(this.trustDomain, '')
    const name = uri.startsWith(prefix) ? uri.slice(prefix.length) : ''
    const serial = certificate.serialNumber
    const isOurs =
      !certificate.ca &&
      [...this.authorities.values()].some(
        (root) =>
          certificate.checkIssued(root.certificate) &&
          certificate.verify(root.certificate.publicKey),
      )
    if (!isOurs || name === '')
      throw new MeshError(
        'HM_CA_HOST_REFUSED',
        'The CA refuses this client certificate: it is not the certificate of a host of this mesh',
      )
    const kept = this.findHost(name)?.certificates.some((one) => one.serial === serial) ?? false
    if (!kept || this.state.revoked.some((one) => one.serial === serial))
      throw new MeshError(
        'HM_CA_HOST_REFUSED',
        `The CA does not know this certificate of ${name}: it was revoked, or the host enrolled again`,
        { hint: 'Enroll the host with a new token from: hostmesh ca token' },
      )
    this.requireTime(certificate, name, options.mayHaveExpired === true)
    return { name, certificate }
  }

  /**
   * A new certificate for a host and a new key.
   * @throws MeshError HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED, HM_CA_RATE_LIMITED
   */
  renew(caller: HostCaller, csr: string): string {
    const publicKey = this.newKey(caller, csr)
    const host = this.requireHost(caller)
    this.requireRoom(host.name)
    const issued = this.issueHost(host.name, publicKey)
    const certificates = [...host.certificates, issued.entry].slice(-KEPT_HOST_CERTIFICATES)
    this.changeHost({ ...host, certificates })
    return issued.certificatePem
  }

  /**
   * A certificate for a service of the caller.
   * @throws MeshError HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED, HM_CA_SERVICE_REFUSED, HM_CA_RATE_LIMITED
   */
  async sign(caller: HostCaller, service: string, csr: string): Promise<string> {
    const publicKey = this.newKey(caller, csr)
    if (!isServiceName(service) || !(await this.mayRun(this.requireHost(caller), service)))
      throw new MeshError(
        'HM_CA_SERVICE_REFUSED',
        `The CA refuses ${caller.name} a certificate for ${JSON.stringify(service.slice(0, 128))}: neither its token nor the catalog says that it runs it`,
        {
          hint: 'Register the service on that node, or enroll the host with a token that lists it',
        },
      )
    // The catalog took its time: the host may have been revoked meanwhile.
    const host = this.requireHost(caller)
    this.requireRoom(host.name)
    const nowMs = this.clock.wallMs()
    const lifetimeMs = this.lifetimes.leafMs
    const identity = { trustDomain: this.trustDomain, datacenter: host.datacenter, service }
    const certificatePem = certifyService(this.activeAuthority(), identity, publicKey, {
      nowMs,
      lifetimeMs,
      backdateMs: backdate(lifetimeMs),
    })
    this.record(certificatePem, { host: host.name, service })
    return certificatePem
  }

  /** A host says which set of roots it uses now. */
  noteRoots(caller: HostCaller, rootsId: string): void {
    if (this.rootsIdByHost.get(caller.name) === rootsId) return
    this.rootsIdByHost.set(caller.name, rootsId)
    this.advance()
  }

  /**
   * Revokes certificates that have not expired; returns their serial numbers. A whole host is no host any more.
   * @throws MeshError HM_CA_NOTHING_TO_REVOKE
   */
  revoke(request: RevokeRequest): { readonly serials: readonly string[] } {
    const { host, service } = request
    const serial = request.serial?.replaceAll(':', '').toUpperCase()
    const known = new Set(this.state.revoked.map((one) => one.serial))
    const found = this.journal
      .issues(host)
      .filter(
        (issue) =>
          (serial === undefined || issue.serial === serial) &&
          (service === undefined || issue.service === service),
      )
    const isWholeHost = host !== undefined && service === undefined && serial === undefined
    if (found.length === 0 && !(isWholeHost && this.findHost(host) !== undefined))
      throw new MeshError(
        'HM_CA_NOTHING_TO_REVOKE',
        'Cannot revoke: no certificate that has not expired is like that',
        { hint: 'hostmesh ca status lists the hosts' },
      )
    const added = found.filter((issue) => !known.has(issue.serial))
    const revoked = [
      ...this.state.revoked,
      ...added.map(({ serial: one, notAfterMs }) => ({ serial: one, notAfterMs })),
    ]
    // Forgotten as well as listed: one that is only listed could be renewed when the list has dropped it.
    const gone = new Set(found.map((issue) => issue.serial))
    let hosts = this.state.hosts.map((one) => ({
      ...one,
      certificates: one.certificates.filter((kept) => !gone.has(kept.serial)),
    }))
    // Nor may whoever has the key and the token of back then ask for it once more.
    const cutOff = new Set(found.flatMap((issue) => (issue.service === null ? issue.host : [])))
    let tokens = this.state.tokens.filter(
      (token) => token.usedByKey === null || !cutOff.has(token.host),
    )
    if (isWholeHost) {
      hosts = hosts.filter(({ name }) => name !== host)
      this.rootsIdByHost.delete(host)
      tokens = tokens.filter((token) => token.host !== host)
    } else if (host !== undefined && service !== undefined)
      hosts = hosts.map((one) =>
        one.name === host
          ? { ...one, services: one.services.filter((name) => name !== service) }
          : one,
      )
    this.change({ ...this.state, revoked, hosts, tokens })
    this.log.warn('Certificates revoked', { ...request, count: added.length })
    this.advance()
    return { serials: found.map((issue) => issue.serial) }
  }

  /** Adds a new root. @throws MeshError HM_CA_ROTATION_STATE, HM_CA_UNWRITABLE */
  startRotation(): RotationStatus {
    if (this.state.rotation !== null)
      throw new MeshError('HM_CA_ROTATION_STATE', 'Cannot start: a rotation is going on', {
        hint: 'hostmesh ca rotate status says how far it is',
      })
    const nowMs = this.clock.wallMs()
    const name = `root-${newTokenSecret().id.slice(0, 8)}`
    try {
      writeRoot(this.directory, name, this.trustDomain, nowMs)
    } catch (thrown) {
      throw new MeshError('HM_CA_UNWRITABLE', `Cannot make a root in ${this.directory}`, {
        cause: thrown,
      })
    }
    const authority = readAuthority(this.directory, name)
    const id = fingerprintOf(authority.certificate)
    this.authorities.set(id, authority)
    this.change({
      ...this.state,
      roots: [...this.state.roots, { id, name, addedAtMs: nowMs }],
      rotation: {
        phase: 'spreading',
        retiring: this.state.activeRoot,
        target: id,
        startedAtMs: nowMs,
      },
    })
    this.log.warn('Root rotation started', { target: id })
    this.advance()
    return this.rotationStatus()
  }

  rotationStatus(): RotationStatus {
    const { rotation, activeRoot } = this.state
    const hosts = this.progress()
    return {
      phase: rotation?.phase ?? 'none',
      activeRoot,
      retiringRoot: rotation?.retiring ?? null,
      startedAtMs: rotation?.startedAtMs ?? null,
      hosts,
      lagging: laggingHosts(this.state, hosts),
    }
  }

  /** Removes the retiring root. @throws MeshError HM_CA_ROTATION_STATE, HM_CA_ROTATION_LAGGING */
  finishRotation(force: boolean): RotationStatus {
    this.requireRotation()
    const { lagging, phase } = this.rotationStatus()
    if (!force && (lagging.length > 0 || phase === 'spreading'))
      throw new MeshError(
        'HM_CA_ROTATION_LAGGING',
        `Cannot finish: ${lagging.length} hosts are not done: ${lagging.slice(0, 10).join(', ')}`,
        {
          hint: 'Wait (hostmesh ca rotate status), revoke hosts that are gone, or lose them with --force',
        },
      )
    this.change(withoutRetiring(this.state))
    this.dropOrphans()
    this.log.warn('Root rotation finished', { activeRoot: this.state.activeRoot, forced: force })
    return this.rotationStatus()
  }

  /** Goes back to the root from before. @throws MeshError HM_CA_ROTATION_STATE */
  abortRotation(): RotationStatus {
    this.requireRotation()
    this.change(withRotationAborted(this.state))
    this.dropOrphans()
    this.log.warn('Root rotation aborted', { activeRoot: this.state.activeRoot })
    return this.rotationStatus()
  }

  status(): CaStatus {
    const { state } = this
    const nowMs = this.clock.wallMs()
    return {
      trustDomain: this.trustDomain,
      address: state.address,
      roots: state.roots.map(({ id }) => ({
        id,
        notAfterMs: this.authorityOf(id).certificate.validToDate.getTime(),
      })),
      activeRoot: state.activeRoot,
      rotation: this.rotationStatus(),
      certificates: this.journal.size,
      revoked: state.revoked.filter(({ notAfterMs }) => notAfterMs > nowMs).length,
      openTokens: state.tokens
        .filter(({ usedByKey, expiresAtMs }) => usedByKey === null && expiresAtMs > nowMs)
        .map(({ host, expiresAtMs }) => ({ host, expiresAtMs })),
      hosts: state.hosts.map((host) => ({
        name: host.name,
        datacenter: host.datacenter,
        services: host.services,
        certificates: this.journal.countOf(host.name),
        notAfterMs: newestCertificate(host)?.notAfterMs ?? 0,
      })),
      failedEnrollments: this.failedEnrollments,
    }
  }

  /** The root that signs the server's certificate and goes into tokens: every host has it. */
  private oldestRoot(): string {
    return this.state.roots.toSorted((a, b) => a.addedAtMs - b.addedAtMs)[0]?.id ?? ''
  }

  private activeAuthority(): StoredAuthority {
    return this.authorityOf(this.state.activeRoot)
  }

  private authorityOf(id: string): StoredAuthority {
    const authority = this.authorities.get(id)
    if (authority === undefined)
      throw new MeshError('HM_CA_STATE_INVALID', `The CA in ${this.directory} has no root ${id}`)
    return authority
  }

  private findHost(name: string): CaHost | undefined {
    return this.state.hosts.find((host) => host.name === name)
  }

  private requireHost(caller: HostCaller): CaHost {
    const host = this.findHost(caller.name)
    const { serialNumber } = caller.certificate
    if (host?.certificates.some(({ serial }) => serial === serialNumber) === true) return host
    throw new MeshError('HM_CA_HOST_REFUSED', `The CA does not know ${caller.name} any more`)
  }

  private requireRoom(host: string): void {
    if (this.journal.countOf(host) < MAX_CERTIFICATES_PER_HOST) return
    // Those that an operator has revoked do not count: a host that was taken over can be set up again.
    const revoked = new Set(this.state.revoked.map(({ serial }) => serial))
    const good = this.journal.issues(host).filter(({ serial }) => !revoked.has(serial))
    if (good.length < MAX_CERTIFICATES_PER_HOST) return
    throw new MeshError(
      'HM_CA_RATE_LIMITED',
      `${host} has ${MAX_CERTIFICATES_PER_HOST} certificates that have not expired, which is the limit`,
    )
  }

  private requireTime(certificate: X509Certificate, name: string, mayHaveExpired: boolean): void {
    const nowMs = this.clock.wallMs()
    const fromMs = certificate.validFromDate.getTime()
    const toMs = certificate.validToDate.getTime()
    const window = `it is valid from ${timeText(fromMs)} to ${timeText(toMs)}, and the clock of the CA says ${timeText(nowMs)}`
    if (nowMs >= fromMs && nowMs < toMs) return
    if (nowMs < fromMs) {
      // Made while our clock was ahead: now that it is right the host must not wait until then.
      if (mayHaveExpired) return
      throw new MeshError(
        'HM_CA_HOST_EXPIRED',
        `The CA cannot use the certificate of ${name} yet: ${window}`,
        { hint: 'If the clock of the CA is right now, the host renews the certificate by itself' },
      )
    }
    if (nowMs >= toMs + this.lifetimes.graceMs)
      throw new MeshError(
        'HM_CA_HOST_REFUSED',
        `The certificate of ${name} ended too long ago to be renewed: ${window}`,
        { hint: 'Enroll the host with a new token from: hostmesh ca token' },
      )
    if (!mayHaveExpired)
      throw new MeshError(
        'HM_CA_HOST_EXPIRED',
        `The certificate of ${name} must be renewed first: ${window}`,
      )
  }

  private newKey(caller: HostCaller, csr: string): KeyObject {
    const publicKey = readSigningRequest(csr)
    if (isSameKey(publicKey, caller.certificate.publicKey))
      throw new MeshError(
        'HM_CA_KEY_REFUSED',
        'Cannot certify the key of the host certificate again: every certificate has a new key',
      )
    return publicKey
  }

  private async mayRun(host: CaHost, service: string): Promise<boolean> {
    if (host.services.includes(service)) return true
    try {
      return await this.runsService(host.name, service)
    } catch (thrown) {
      this.log.warn('Cannot ask the catalog what a host runs', {
        host: host.name,
        service,
        error: describeError(thrown),
      })
      return false
    }
  }

  private issueHost(
    name: string,
    publicKey: KeyObject,
  ): { readonly certificatePem: string; readonly entry: CaHost['certificates'][number] } {
    const lifetimeMs = this.lifetimes.hostMs
    const certificatePem = certify(
      this.activeAuthority(),
      {
        publicKey,
        uri: hostUri(this.trustDomain, name),
        purpose: 'client',
        what: `a certificate for host ${name}`,
      },
      { nowMs: this.clock.wallMs(), lifetimeMs, backdateMs: backdate(lifetimeMs) },
    )
    const { serial, rootId, notAfterMs } = this.record(certificatePem, {
      host: name,
      service: null,
    })
    return { certificatePem, entry: { serial, rootId, notAfterMs } }
  }

  private record(certificatePem: string, of: Pick<Issue, 'host' | 'service'>): Issue {
    const certificate = new X509Certificate(certificatePem)
    const issue: Issue = {
      ...of,
      serial: certificate.serialNumber,
      issuedAtMs: this.clock.wallMs(),
      notAfterMs: certificate.validToDate.getTime(),
      rootId: this.state.activeRoot,
    }
    try {
      this.journal.record(issue)
    } catch (thrown) {
      throw new MeshError('HM_CA_UNWRITABLE', `Cannot write the journal in ${this.directory}`, {
        cause: thrown,
      })
    }
    this.log.info('Certificate issued', {
      host: issue.host,
      service: issue.service ?? '(host)',
      serial: issue.serial,
      notAfter: timeText(issue.notAfterMs),
    })
    return issue
  }

  private progress(): readonly HostProgress[] {
    return progressOf(this.state, (host) => this.journal.issues(host), this.now())
  }

  private now(): RotationNow {
    return {
      rootsId: this.current.rootsId,
      rootsIdByHost: this.rootsIdByHost,
      nowMs: this.clock.wallMs(),
      graceMs: this.lifetimes.graceMs,
    }
  }

  private requireRotation(): void {
    if (this.state.rotation === null)
      throw new MeshError('HM_CA_ROTATION_STATE', 'Cannot do this: no rotation is going on', {
        hint: 'Start one with: hostmesh ca rotate start',
      })
  }

  private advance(): void {
    if (this.state.rotation?.phase !== 'spreading') return
    if (!isSpread(this.state, this.now())) return
    this.change(withTargetSigning(this.state))
    this.log.warn('Every host has both roots; the new one signs from now on', {
      activeRoot: this.state.activeRoot,
    })
  }

  private changeHost(host: CaHost): void {
    const hosts = this.state.hosts.map((one) => (one.name === host.name ? host : one))
    this.change({ ...this.state, hosts })
  }

  /** Writes first, then uses and tells. */
  private change(next: CaState): void {
    try {
      writeState(this.directory, next)
    } catch (thrown) {
      throw new MeshError('HM_CA_UNWRITABLE', `Cannot write the state in ${this.directory}`, {
        cause: thrown,
      })
    }
    this.state = next
    const bundle = this.makeBundle()
    if (bundle.id === this.current.id) return
    this.current = bundle
    for (const listener of this.listeners) listener()
  }

  private makeBundle(): CaBundle {
    const { roots, activeRoot, revoked } = this.state
    const rootsId = contentIdOf(roots.map(({ id }) => id).toSorted())
    const serials = revoked.map(({ serial }) => serial).toSorted()
    return {
      id: contentIdOf([rootsId, activeRoot, ...serials]),
      rootsId,
      trustDomain: this.trustDomain,
      roots: [...this.rootsPem()],
      activeRoot,
      revoked: serials,
      renewWithinSeconds: this.lifetimes.renewWithinMs / 1_000,
    }
  }

  /** Without its state a CA that was in use would forget hosts, revocations and the root that signs. */
  private stateThatFits(found: CaState | undefined, hasJournal: boolean): CaState {
    const missing = hasJournal ? 'state.json' : 'journal.jsonl'
    const isUsed = found === undefined ? hasJournal : found.hosts.length > 0
    if (isUsed && !(hasJournal && found !== undefined))
      throw new MeshError(
        'HM_CA_STATE_INVALID',
        `Cannot open the CA in ${this.directory}: it was in use, and ${missing} is missing`,
        { hint: 'Restore the whole directory from one backup (docs/certificates.md)' },
      )
    return found ?? this.firstState()
  }

  private firstState(): CaState {
    const { certificate } = readAuthority(this.directory, 'ca')
    const id = fingerprintOf(certificate)
    const state: CaState = {
      version: 1,
      address: null,
      roots: [{ id, name: 'ca', addedAtMs: certificate.validFromDate.getTime() }],
      activeRoot: id,
      rotation: null,
      tokens: [],
      hosts: [],
      revoked: [],
    }
    writeState(this.directory, state)
    return state
  }

  /** Removes files of roots that the state does not name: a crash or a rotation has left them. */
  private dropOrphans(): void {
    const names = new Set(this.state.roots.map(({ name }) => name))
    for (const id of this.authorities.keys())
      if (!this.state.roots.some((root) => root.id === id)) this.authorities.delete(id)
    for (const file of readdirSync(this.directory)) {
      const match = /^(ca|root-[0-9a-f]{8})\.(pem|key)$/.exec(file)
      if (match === null || names.has(match[1] ?? '')) continue
      try {
        rmSync(join(this.directory, file))
      } catch (thrown) {
        this.log.warn('Cannot remove the file of a root that is gone', {
          file,
          error: errorCode(thrown),
        })
      }
    }
  }
}

/** Clocks of a fleet may differ by minutes; a short-lived certificate must still have its half life ahead. */
function backdate(lifetimeMs: number): number {
  return Math.min(BACKDATE_MS, lifetimeMs / 10)
}

function hashKey(key: KeyObject): string {
  return createHash('sha256')
    .update(key.export({ type: 'spki', format: 'der' }))
    .digest('hex')
}

/** A short name of some content: equal content has an equal name. */
function contentIdOf(parts: readonly string[]): string {
  return createHash('sha256').update(parts.join('\n')).digest('hex').slice(0, 16)
}

function timeText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}
