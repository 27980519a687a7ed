/**
 * Who asks, and what they may do.
 *
 * A caller on the unix socket is known by what the kernel says of the process; over TCP by a client certificate or a
 * bearer token; behind a proxy that is known, by the header that the proxy sets. On a loopback port anyone without any
 * of these is a viewer. Everything else that a request says of itself is ignored.
 */
import type { IncomingMessage } from 'node:http'
import { TLSSocket } from 'node:tls'
import type { Clock } from '../lib/clock.ts'
import { MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { peerCredentials } from '../lib/peer-credentials.ts'
import { RateLimiter } from '../lib/rate-limit.ts'
import { singleUriSan } from '../lib/uri-san.ts'
import { canonicalIp, isLoopback } from '../model/address.ts'
import { callerAt } from '../model/caller-address.ts'
import type { AuditLog } from './audit.ts'
import type { AggregatorConfig, Role } from './config.ts'
import { TokenList } from './token-list.ts'

/** Where a request came in: the unix socket of all, that of the proxy, or the TCP port. */
export type ListenerKind = 'local' | 'proxy' | 'tcp'

/** What a role allows. `read`: documents, the live view, metrics. */
export type Right = 'read' | 'tap' | 'operate' | 'audit'

/** The rights of each role. */
const rights: Readonly<Record<Role, readonly Right[]>> = {
  viewer: ['read'],
  tapper: ['read', 'tap'],
  operator: ['read', 'tap', 'operate'],
  auditor: ['read', 'audit'],
}

/** Who asks. */
export interface Caller {
  readonly name: string
  readonly role: Role
  readonly by: 'process' | 'loopback' | 'token' | 'certificate' | 'proxy'
}

/** What access is decided by. */
export interface AccessOptions {
  readonly config: Pick<AggregatorConfig, 'listen' | 'access'>
  /** The number of `listen.group`. */
  readonly gid: number | undefined
  readonly audit: AuditLog
  readonly clock: Clock
  readonly log: Log
}

/** Wrong credentials from one address. */
const FAILURES = { burst: 20, perSecond: 0.5 } as const

/** Headers by which a proxy says that it passes a request on for another host. */
const FORWARDED = ['forwarded', 'x-forwarded-for', 'x-real-ip', 'via'] as const

/** Decides who a caller is. */
export class Access {
  readonly #options: AccessOptions
  readonly #tokens: TokenList | undefined
  readonly #failures = new RateLimiter(FAILURES)
  readonly #certificateRoles: ReadonlyMap<string, Role>
  readonly #userRoles: ReadonlyMap<string, Role>

  /** @throws MeshError as {@link TokenList} */
  constructor(options: AccessOptions) {
    this.#options = options
    const { tokens, clientCertificates, proxy } = options.config.access
    this.#tokens = tokens === undefined ? undefined : new TokenList(tokens, options)
    this.#certificateRoles = rolesByName(clientCertificates?.roles)
    this.#userRoles = rolesByName(proxy?.roles)
  }

  /**
   * The caller, who has this right.
   * @throws MeshError HM_API_UNAUTHENTICATED, HM_API_ROLE_DENIED, HM_API_RATE_LIMITED
   */
  admit(request: IncomingMessage, kind: ListenerKind, right: Right): Caller {
    const { audit, clock } = this.#options
    const path = (request.url ?? '').split('?', 1)[0] ?? ''
    const payer = callerAt(request.socket.remoteAddress)
    const from = payer === '' ? 'unix' : (request.socket.remoteAddress ?? '')
    if (!this.#failures.has(payer, clock.monotonicMs()))
      throw new MeshError('HM_API_RATE_LIMITED', 'Too many refused requests from this address')
    let caller: Caller | undefined
    try {
      caller = this.#identify(request, kind)
      if (caller.by === 'token') audit.record({ event: 'token', caller: caller.name, from, path })
      if (!rights[caller.role].includes(right))
        throw new MeshError(
          'HM_API_ROLE_DENIED',
          `Cannot answer ${caller.name}: the role ${caller.role} has no right to ${right}`,
        )
      return caller
    } catch (error) {
      this.#failures.take(payer, clock.monotonicMs())
      const reason = error instanceof MeshError ? error.code : 'HM_INTERNAL'
      audit.record({ event: 'denied', caller: caller?.name ?? 'unknown', from, path, reason })
      throw error
    }
  }

  #identify(request: IncomingMessage, kind: ListenerKind): Caller {
    switch (kind) {
      case 'local':
        return this.#byToken(request) ?? this.#byProcess(request)
      case 'proxy':
        return this.#byProxy(request)
      case 'tcp':
        return this.#byCertificate(request) ?? this.#byToken(request) ?? this.#byLoopback(request)
      default:
        return kind satisfies never
    }
  }

  #byProcess({ socket }: IncomingMessage): Caller {
    const peer = peerCredentials(socket)
    // The file mode of the socket has let it in; the kernel does not say more.
    if (peer === undefined) return { name: 'a local process', role: 'viewer', by: 'process' }
    const { gid } = this.#options
    const isOperator =
      peer.uid === 0 ||
      peer.uid === process.geteuid?.() ||
      (gid !== undefined && peer.gids.includes(gid))
    return { name: `uid ${peer.uid}`, role: isOperator ? 'operator' : 'viewer', by: 'process' }
  }

  #byCertificate(request: IncomingMessage): Caller | undefined {
    const { socket } = request
    const { clientCertificates, proxy } = this.#options.config.access
    if (clientCertificates === undefined || !(socket instanceof TLSSocket) || !socket.authorized)
      return undefined
    const name = certificateName(socket)
    if (name === undefined) return undefined
    if (name === proxy?.certificate) return this.#byProxy(request)
    const role = this.#certificateRoles.get(name)
    if (role !== undefined) return { name, role, by: 'certificate' }
    // Another way in may be given beside it, such as a token.
    if (request.headers.authorization !== undefined) return undefined
    throw new MeshError('HM_API_ROLE_DENIED', `Cannot answer ${name}: it has no role`, {
      hint: 'Give it one in access.clientCertificates.roles',
    })
  }

  #byToken({ headers }: IncomingMessage): Caller | undefined {
    if (headers.authorization === undefined) return undefined
    const token = tokenIn(headers.authorization)
    const owner = token === undefined ? undefined : this.#tokens?.ownerOf(token)
    if (owner === undefined) throw unauthenticated('The token is not known')
    const { name, role, expiresAtMs } = owner
    if (expiresAtMs <= this.#options.clock.wallMs())
      throw unauthenticated(`The token of ${name} has expired`)
    return { name, role, by: 'token' }
  }

  #byProxy(request: IncomingMessage): Caller {
    const { proxy } = this.#options.config.access
    const values = proxy === undefined ? [] : (request.headersDistinct[proxy.header] ?? [])
    const [name = '', ...others] = values
    // Two of them: one may have come through the proxy from the user.
    if (name === '' || others.length > 0)
      throw unauthenticated(`The proxy must set ${proxy?.header} exactly once`)
    const role = this.#userRoles.get(name) ?? proxy?.role
    if (role !== undefined) return { name, role, by: 'proxy' }
    throw new MeshError('HM_API_ROLE_DENIED', `Cannot answer ${name.slice(0, 100)}: no role`, {
      hint: 'Give the user a role in access.proxy.roles',
    })
  }

  #byLoopback({ socket, headers }: IncomingMessage): Caller {
    const { listen } = this.#options.config
    const from = canonicalIp(socket.remoteAddress ?? '')
    const isForwarded = FORWARDED.some((name) => headers[name] !== undefined)
    if (!isLoopback(listen.address) || from === undefined || !isLoopback(from))
      throw unauthenticated('Show a token or a client certificate')
    if (isForwarded)
      throw unauthenticated(
        'The request comes through a proxy that is not known: it must use access.proxy, or pass on a token',
      )
    return { name: 'loopback', role: 'viewer', by: 'loopback' }
  }
}

function rolesByName(
  list: readonly { readonly name: string; readonly role: Role }[] | undefined,
): ReadonlyMap<string, Role> {
  return new Map((list ?? []).map(({ name, role }) => [name, role]))
}

/** The name in a client certificate whose chain was verified. */
function certificateName(socket: TLSSocket): string | undefined {
  const certificate = socket.getPeerX509Certificate()
  if (certificate === undefined) return undefined
  const uri = singleUriSan(certificate.raw)
  if (uri !== undefined) return uri
  if (certificate.subjectAltName?.includes('URI:') === true) return undefined
  const common: unknown = certificate.toLegacyObject().subject?.CN
  // A common name is free text: it must not pass for a URI.
  return typeof common === 'string' && !common.includes('://') ? common : undefined
}

/** The token of an Authorization header. */
function tokenIn(header: string): string | undefined {
  return /^bearer +(\S+)$/i.exec(header)?.[1]
}

function unauthenticated(message: string): MeshError {
  return new MeshError('HM_API_UNAUTHENTICATED', message, {
    hint: 'See docs/observability.md, "Access"',
  })
}
