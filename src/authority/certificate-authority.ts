/**
 * The CA itself: decides who gets which certificate (docs/ca-protocol.md); what all hosts trust is mesh-trust.ts.
 *
 * It does no network I/O: the server and the commands call it. It holds the lock of its directory, so only one is open
 * at a time. Every change is on disk before anyone is informed of it; a certificate is in the database before it is
 * issued. Whatever cannot be decided is refused. No message contains a secret or a key.
 */
import { type KeyObject, X509Certificate } from 'node:crypto'
import type { z } from 'zod'
import { isSameKey, readSigningRequest } from '../controlplane/identity/csr.ts'
import type { Clock } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import { tryLockFile } from '../lib/file-lock.ts'
import type { Log } from '../lib/log.ts'
import { singleUriSan } from '../lib/uri-san.ts'
import { caUri, type enrollRequest, hostUri } from '../model/ca-protocol.ts'
import { formatJoinToken } from '../model/join-token.ts'
import { REPORTER_SERVICE } from '../model/report.ts'
import { isServiceName } from '../model/spiffe-id.ts'
import type { CaDatabase, Run } from './database.ts'
import {
  findHost,
  forgetExpired,
  type Host,
  type HostCaller,
  putHost,
  type RevokeRequest,
  recordIssue,
  requireRoom,
  requireRoomForHost,
  revokeCertificates,
  splitNames,
} from './hosts.ts'
import { BACKDATE_MS, certify, certifyService, type Lifetime } from './issue-certificate.ts'
import { addToken, findToken, hashKey, type TokenRequest } from './join-tokens.ts'
import { MeshTrust } from './mesh-trust.ts'
import { lockFile, openDatabase, Roots } from './roots.ts'
import { type CaStatus, readAddress, readCaStatus } from './status.ts'

/** Lifetimes and intervals, milliseconds. */
export interface CaLifetimes {
  readonly leafMs: number
  readonly hostMs: number
  /** How long after its expiry a host certificate may still be renewed. */
  readonly graceMs: number
  /** How long hosts may take to follow a change of the active root. */
  readonly renewWithinMs: number
}

/** Defaults. */
const DEFAULT_LIFETIMES: CaLifetimes = {
  leafMs: 24 * 3_600_000,
  hostMs: 7 * 86_400_000,
  graceMs: 7 * 86_400_000,
  renewWithinMs: 300_000,
}

/** Reports what a host runs, beyond its token: the catalog. May be wrong for a while, must not throw for "no". */
export type RunsService = (host: string, service: string) => Promise<boolean>

/** What a CA is opened with. */
export interface CertificateAuthorityOptions {
  readonly directory: string
  readonly log: Log
  readonly clock: Clock
  readonly lifetimes?: Partial<CaLifetimes>
  readonly runsService?: RunsService
}

type EnrollRequest = z.output<typeof enrollRequest>

/** The open CA of one directory. */
export class CertificateAuthority implements Disposable {
  readonly trustDomain: string
  readonly lifetimes: CaLifetimes
  readonly clock: Clock
  /** What every host must trust. */
  readonly trust: MeshTrust
  readonly #log: Log
  readonly #runsService: RunsService
  readonly #database: CaDatabase
  readonly #roots: Roots
  readonly #owned: DisposableStack
  #failedEnrollments = 0

  /**
   * Opens the CA that `hostmesh ca init` created.
   * @throws MeshError HM_CA_LOCKED when a server or command uses it, and as openDatabase, Roots
   */
  constructor(options: CertificateAuthorityOptions) {
    const { directory, log, clock } = options
    this.#log = log
    this.clock = clock
    this.lifetimes = { ...DEFAULT_LIFETIMES, ...options.lifetimes }
    this.#runsService = options.runsService ?? (async () => false)
    using owned = new DisposableStack()
    // Before the lock: its file must not appear in a directory that is not a CA's.
    this.#database = owned.use(openDatabase(directory))
    const lock = tryLockFile(lockFile(directory))
    if (lock === undefined)
      throw new MeshError('HM_CA_LOCKED', `Cannot open the CA in ${directory}: it is in use`, {
        hint: 'Another hostmesh ca works on it; wait for it, or stop it',
      })
    owned.use(lock)
    this.#roots = new Roots(directory, this.#database, log)
    this.trustDomain = this.#roots.oldest.trustDomain
    const { graceMs, renewWithinMs } = this.lifetimes
    const shared = { database: this.#database, roots: this.#roots, clock, log }
    this.trust = owned.use(new MeshTrust({ ...shared, graceMs, renewWithinMs }))
    this.maintain()
    this.#owned = owned.move()
  }

  [Symbol.dispose](): void {
    this.#owned.dispose()
  }

  /** Deletes what has expired, and continues a rotation when that is possible; called every few seconds. */
  maintain(): void {
    if (forgetExpired(this.#database, this.clock.wallMs())) this.trust.update()
    else this.trust.advance()
  }

  /** Where hosts reach the server; null until one was started. Included in tokens. */
  get address(): string | null {
    return readAddress(this.#database) ?? null
  }

  setAddress(address: string): void {
    if (this.address !== address)
      this.#database.change((run) => run('INSERT OR REPLACE INTO server VALUES (1, ?)', address))
  }

  /** A certificate for the server of this CA and a key, signed by the root that every host has; PEM. */
  certifyServer(publicKey: KeyObject): string {
    const uri = caUri(this.trustDomain)
    const what = 'a certificate for the CA server'
    const request = { publicKey, uri, purpose: 'server', what } as const
    return certify(this.#roots.oldest, request, this.#lifetime('hostMs'))
  }

  /**
   * Creates a join token.
   * @throws MeshError HM_CA_NAME_INVALID, HM_CA_DATACENTER_INVALID, HM_CA_TOKEN_REQUEST_INVALID
   */
  createToken(request: TokenRequest): { readonly token: string; readonly expiresAtMs: number } {
    const { host, services, ttlMs } = request
    const expiresAtMs = Math.round(this.clock.wallMs() + ttlMs)
    const address = request.address ?? this.address ?? undefined
    const made = addToken(this.#database, { ...request, address }, expiresAtMs)
    this.#log.info('Join token made', { host, services, expires: timeText(expiresAtMs) })
    const fingerprint = this.#roots.oldest.id
    return { token: formatJoinToken({ ...made, fingerprint, host }), expiresAtMs }
  }

  /**
   * Enrolls a new host with a token. `from` is used in the log.
   * @throws MeshError HM_CA_TOKEN_REFUSED, HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED, HM_CA_RATE_LIMITED, HM_CA_BUSY
   */
  enroll(request: EnrollRequest, from: string): string {
    const nowMs = this.clock.wallMs()
    const token = findToken(this.#database, request, nowMs)
    if (typeof token === 'string') throw this.#tokenRefused(token, request, from)
    const publicKey = readSigningRequest(request.csr)
    const keyHash = hashKey(publicKey)
    const { id, host, usedByKey, datacenter, services } = token
    if (usedByKey !== null && usedByKey !== keyHash)
      throw this.#tokenRefused('used token', request, from)
    // The operator granted one certificate; repeated requests are the host's, and count against its limit.
    if (usedByKey !== null) requireRoom(this.#database, host, nowMs)
    requireRoomForHost(this.#database, host)
    const certificatePem = this.#issueHost(host, publicKey, (run) => {
      putHost(run, { name: host, datacenter, services })
      run('UPDATE token SET usedByKey = ? WHERE id = ?', keyHash, id)
    })
    this.trust.forgetRoots(host)
    this.#log.info('Host enrolled', { host, from, services: splitNames(services) })
    return certificatePem
  }

  /**
   * The host that a client certificate belongs to; TLS has verified that the caller has its key.
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
    const isOurs =
      !certificate.ca &&
      this.#roots.all.some(
        (root) =>
          certificate.checkIssued(root.certificate) &&
          certificate.verify(root.certificate.publicKey),
      )
    if (!isOurs || name === '')
      throw new MeshError(
        'HM_CA_HOST_REFUSED',
        'The CA refuses this client certificate: it is not the certificate of a host of this mesh',
      )
    const caller = { name, certificate }
    if (findHost(this.#database, caller) === undefined)
      throw new MeshError(
        'HM_CA_HOST_REFUSED',
        `The CA does not know this certificate of ${name}: it was revoked, or the host enrolled again`,
        { hint: 'Enroll the host with a new token from: hostmesh ca token' },
      )
    this.#requireTime(certificate, name, options.mayHaveExpired === true)
    return caller
  }

  /**
   * A new certificate for a host, with a new key.
   * @throws MeshError HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED, HM_CA_RATE_LIMITED
   */
  renew(caller: HostCaller, csr: string): string {
    const publicKey = newKey(caller, csr)
    const { name } = this.#requireHost(caller)
    requireRoom(this.#database, name, this.clock.wallMs())
    return this.#issueHost(name, publicKey)
  }

  /**
   * A certificate for a service of the caller.
   * @throws MeshError HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED, HM_CA_SERVICE_REFUSED, HM_CA_RATE_LIMITED
   */
  async sign(caller: HostCaller, service: string, csr: string): Promise<string> {
    const publicKey = newKey(caller, csr)
    if (!isServiceName(service) || !(await this.#mayRun(this.#requireHost(caller), service)))
      throw new MeshError(
        'HM_CA_SERVICE_REFUSED',
        `The CA refuses ${caller.name} a certificate for ${JSON.stringify(service.slice(0, 128))}: neither its token nor the catalog says that it runs it`,
        {
          hint: 'Register the service on that node, or enroll the host with a token that lists it',
        },
      )
    // The host may have been revoked while the catalog was queried.
    const { name: host, datacenter } = this.#requireHost(caller)
    const lifetime = this.#lifetime('leafMs')
    requireRoom(this.#database, host, lifetime.nowMs)
    const identity = { trustDomain: this.trustDomain, datacenter, service }
    const certificatePem = certifyService(this.#roots.active, identity, publicKey, lifetime)
    this.#record({ host, service, certificatePem })
    return certificatePem
  }

  /**
   * Revokes certificates that have not expired; returns their serial numbers. A host revoked as a whole is removed.
   * @throws MeshError HM_CA_NOTHING_TO_REVOKE
   */
  revoke(request: RevokeRequest): { readonly serials: readonly string[] } {
    const { serials, added } = revokeCertificates(this.#database, request, this.clock.wallMs())
    this.#log.warn('Certificates revoked', { ...request, count: added })
    this.trust.update()
    return { serials }
  }

  status(): CaStatus {
    return readCaStatus(this.trust.statusInput(), this.#failedEnrollments)
  }

  #requireHost(caller: HostCaller): Host {
    const host = findHost(this.#database, caller)
    if (host !== undefined) return host
    throw new MeshError('HM_CA_HOST_REFUSED', `The CA does not know ${caller.name} any more`)
  }

  #requireTime(certificate: X509Certificate, name: string, mayHaveExpired: boolean): void {
    const nowMs = this.clock.wallMs()
    const fromMs = certificate.validFromDate.getTime()
    const toMs = certificate.validToDate.getTime()
    const window = `it is valid from ${timeText(fromMs)} to ${timeText(toMs)}, and the clock of the CA says ${timeText(nowMs)}`
    if (nowMs >= fromMs && nowMs < toMs) return
    if (nowMs < fromMs) {
      // Issued while our clock was ahead: now that it is correct the host must not have to wait until then.
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

  async #mayRun({ name, services }: Host, service: string): Promise<boolean> {
    // Every host reports as this service; that no catalog lists it must not keep a host from reporting.
    if (service === REPORTER_SERVICE || splitNames(services).includes(service)) return true
    try {
      return await this.#runsService(name, service)
    } catch (thrown) {
      this.#log.warn('Cannot ask the catalog what a host runs', {
        host: name,
        service,
        error: describeError(thrown),
      })
      return false
    }
  }

  #tokenRefused(reason: string, { id, host }: EnrollRequest, from: string): MeshError {
    this.#failedEnrollments += 1
    this.#log.warn('Enrollment refused', { reason, from, host, token: id })
    return new MeshError(
      'HM_CA_TOKEN_REFUSED',
      `The CA refuses the join token for ${host}: it is unknown, used, expired or for another host`,
      { hint: 'Make a new one with: hostmesh ca token; the log of the CA has the reason' },
    )
  }

  /** Signs a host certificate; the changes made by `change` are in the same transaction as its record. */
  #issueHost(host: string, publicKey: KeyObject, change?: (run: Run) => void): string {
    const uri = hostUri(this.trustDomain, host)
    const what = `a certificate for host ${host}`
    const request = { publicKey, uri, purpose: 'client', what } as const
    const certificatePem = certify(this.#roots.active, request, this.#lifetime('hostMs'))
    this.#record({ host, service: null, certificatePem }, change)
    return certificatePem
  }

  #record(
    issued: { readonly host: string; readonly service: string | null; certificatePem: string },
    change?: (run: Run) => void,
  ): void {
    const { host, service } = issued
    const certificate = new X509Certificate(issued.certificatePem)
    this.#database.change((run) => {
      change?.(run)
      const rootId = this.#roots.active.id
      recordIssue(run, { host, service, certificate, rootId }, this.clock.wallMs())
    })
    this.#log.info('Certificate issued', {
      host,
      service: service ?? '(host)',
      serial: certificate.serialNumber,
      notAfter: timeText(certificate.validToDate.getTime()),
    })
  }

  #lifetime(kind: 'leafMs' | 'hostMs'): Lifetime {
    const lifetimeMs = this.lifetimes[kind]
    // A short-lived certificate must still be fresh for half of its life.
    const backdateMs = Math.min(BACKDATE_MS, lifetimeMs / 10)
    return { nowMs: this.clock.wallMs(), lifetimeMs, backdateMs }
  }
}

/** The key of a request; must differ from that of the caller's own certificate. */
function newKey(caller: HostCaller, csr: string): KeyObject {
  const publicKey = readSigningRequest(csr)
  if (isSameKey(publicKey, caller.certificate.publicKey))
    throw new MeshError(
      'HM_CA_KEY_REFUSED',
      'Cannot certify the key of the host certificate again: every certificate has a new key',
    )
  return publicKey
}

function timeText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}
