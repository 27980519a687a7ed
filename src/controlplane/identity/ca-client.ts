/**
 * A host's calls to the CA (docs/ca-protocol.md). Every call has a deadline and a limit on the size of the answer, and
 * the server is verified before a request is sent, except for the request for the roots.
 */
import { X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { Agent, request as httpsRequest } from 'node:https'
import { connect as tlsConnect } from 'node:tls'
import type { z } from 'zod'
import { systemClock } from '../../lib/clock.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import { BodyTooLong, callJson, type JsonAnswer, readError } from '../../lib/json-http.ts'
import { singleUriSan } from '../../lib/uri-san.ts'
import {
  bundleAnswer,
  type CaBundle,
  caUri,
  certificateAnswer,
  fingerprintOf,
  MAX_ANSWER_BYTES,
  membershipAnswer,
  POLL_MS,
  rootsAnswer,
} from '../../model/ca-protocol.ts'
import { CA_ADDRESS, type JoinToken } from '../../model/join-token.ts'

/** Certificate and key of a host, PEM. */
export interface HostCredential {
  readonly certificatePem: string
  readonly privateKeyPem: string
}

/** The roots by which a call verifies the CA. */
export interface CaTrust {
  readonly trustDomain: string
  readonly rootsPem: readonly string[]
}

const SCHEME = 'spiffe://'

/** For connecting, sending and reading together. */
const CALL_TIMEOUT_MS = 10_000

/** The client of one CA, for one host. */
export class CaClient implements Disposable {
  readonly address: string
  readonly #host: string
  readonly #port: number
  readonly #closing = new AbortController()
  #agent: { readonly key: string; readonly agent: Agent } | undefined

  /** `address` is `host:port`. @throws MeshError HM_CA_ADDRESS_INVALID */
  constructor(address: string) {
    const match = CA_ADDRESS.exec(address)
    const port = Number(match?.[3])
    if (match === null || port < 1 || port > 65_535)
      throw new MeshError('HM_CA_ADDRESS_INVALID', `Cannot use "${address}" as address of the CA`, {
        hint: 'Write host:port, an IPv6 address in brackets',
      })
    this.address = address
    this.#host = match[1] ?? match[2] ?? ''
    this.#port = port
  }

  /**
   * The root named by a token, from a server that is not yet verified: the fingerprint verifies it.
   * @throws MeshError HM_CA_UNTRUSTED and as every call
   */
  async fetchRoot(token: JoinToken): Promise<CaTrust> {
    // From this server nothing is trusted but a certificate with the fingerprint of the token.
    const agent = new Agent({
      rejectUnauthorized: false,
      minVersion: 'TLSv1.3',
      maxCachedSessions: 0,
    })
    try {
      const answer = await this.#call({ path: '/v1/roots', agent }, rootsAnswer)
      for (const pem of answer.roots) {
        const certificate = parseRoot(pem)
        if (certificate === undefined || fingerprintOf(certificate) !== token.fingerprint) continue
        // From the certificate: the rest of the answer could be written by anyone.
        const uri = singleUriSan(certificate.raw)
        if (uri?.startsWith(SCHEME) === true)
          return { trustDomain: uri.slice(SCHEME.length), rootsPem: [certificate.toString()] }
      }
    } finally {
      agent.destroy()
    }
    throw new MeshError(
      'HM_CA_UNTRUSTED',
      `Cannot trust the CA at ${this.address}: it has no root with the fingerprint of the join token`,
      {
        hint: 'Another CA answers there, or its root was replaced: make a new token with hostmesh ca token',
      },
    )
  }

  /** Uses a token. @throws MeshError as every call */
  async enroll(
    trust: CaTrust,
    token: JoinToken,
    csr: string,
  ): Promise<z.output<typeof membershipAnswer>> {
    const agent = this.#makeAgent(trust)
    try {
      const body = { id: token.id, secret: token.secret, host: token.host, csr }
      return await this.#call({ path: '/v1/enroll', agent, body }, membershipAnswer)
    } finally {
      agent.destroy()
    }
  }

  /** A new certificate for the host. @throws MeshError as every call */
  renew(
    trust: CaTrust,
    credential: HostCredential,
    csr: string,
  ): Promise<z.output<typeof membershipAnswer>> {
    const agent = this.#agentFor(trust, credential)
    return this.#call({ path: '/v1/renew', agent, body: { csr } }, membershipAnswer)
  }

  /** A certificate for a service; PEM. @throws MeshError as every call */
  async sign(
    trust: CaTrust,
    credential: HostCredential,
    request: { readonly service: string; readonly csr: string },
  ): Promise<string> {
    const agent = this.#agentFor(trust, credential)
    const call = { path: '/v1/sign', agent, body: request }
    return (await this.#call(call, certificateAnswer)).certificate
  }

  /** The bundle, as soon as it differs from `have`, or after a while. @throws MeshError as every call */
  bundle(
    trust: CaTrust,
    credential: HostCredential,
    using: { readonly have: string; readonly roots: string },
  ): Promise<CaBundle> {
    const agent = this.#agentFor(trust, credential)
    const path = `/v1/bundle?have=${encodeURIComponent(using.have)}&roots=${encodeURIComponent(using.roots)}`
    const timeoutMs = POLL_MS + CALL_TIMEOUT_MS
    return this.#call({ path, agent, timeoutMs }, bundleAnswer)
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
    this.#agent?.agent.destroy()
  }

  #agentFor(trust: CaTrust, credential: HostCredential): Agent {
    const key = [...trust.rootsPem, credential.certificatePem].join()
    if (this.#agent?.key === key) return this.#agent.agent
    this.#agent?.agent.destroy()
    const agent = this.#makeAgent(trust, credential)
    this.#agent = { key, agent }
    return agent
  }

  #makeAgent(trust: CaTrust, credential?: HostCredential): Agent {
    const expected = caUri(trust.trustDomain)
    return new Agent({
      keepAlive: true,
      maxSockets: 4,
      maxCachedSessions: 0,
      rejectUnauthorized: true,
      minVersion: 'TLSv1.3',
      ca: [...trust.rootsPem],
      ...(credential !== undefined && {
        cert: credential.certificatePem,
        key: credential.privateKeyPem,
      }),
      checkServerIdentity: (_, peer) => {
        const uri = singleUriSan(peer.raw)
        if (uri === expected) return undefined
        return new MeshError(
          'HM_CA_UNTRUSTED',
          `it proves itself as ${JSON.stringify(uri ?? 'nobody')}, not as ${expected}`,
        )
      },
    })
  }

  async #call<Schema extends z.ZodType>(
    call: {
      readonly path: string
      readonly agent: Agent
      readonly body?: unknown
      readonly timeoutMs?: number
    },
    schema: Schema,
  ): Promise<z.output<Schema>> {
    const { path, agent, body, timeoutMs = CALL_TIMEOUT_MS } = call
    const deadline = AbortSignal.timeout(timeoutMs)
    const signal = AbortSignal.any([deadline, this.#closing.signal])
    const options = { host: this.#host, port: this.#port, path, agent, signal }
    const what = path.split('?', 1)[0] ?? ''
    let answer: JsonAnswer
    try {
      answer = await callJson(httpsRequest, options, { body, maxBytes: MAX_ANSWER_BYTES })
    } catch (thrown) {
      if (this.#closing.signal.aborted)
        throw new MeshError('HM_CA_CLOSED', 'Connection to the CA is closed')
      throw await this.#explain(thrown, { what, isLate: deadline.aborted, timeoutMs })
    }
    if (answer.status !== 200) {
      const { code = 'HM_CA_ANSWER_MALFORMED', message } = readError(answer.body)
      const text = message ?? `The CA at ${this.address} answered ${answer.status}`
      throw new MeshError(code, printable(text))
    }
    const { success, data } = schema.safeParse(answer.body)
    if (success) return data
    throw new MeshError(
      'HM_CA_ANSWER_MALFORMED',
      `Cannot read what the CA at ${this.address} answered to ${what}`,
    )
  }

  /** Converts the failure of a call into one of our errors. */
  async #explain(
    thrown: unknown,
    call: { readonly what: string; readonly isLate: boolean; readonly timeoutMs: number },
  ): Promise<MeshError> {
    const code = errorCode(thrown)
    if (call.isLate)
      return new MeshError(
        'HM_CA_UNREACHABLE',
        `The CA at ${this.address} did not answer ${call.what} in ${call.timeoutMs} ms`,
      )
    if (code === 'CERT_NOT_YET_VALID' || code === 'CERT_HAS_EXPIRED') {
      const nowText = timeText(systemClock.wallMs())
      const window = await this.#serverWindow()
      return new MeshError(
        'HM_CA_UNTRUSTED',
        `Cannot trust the CA at ${this.address}: its certificate is valid ${window}, and the clock of this host says ${nowText}`,
        { hint: 'Correct the clock of this host, or of the CA' },
      )
    }
    if (code === 'HM_CA_UNTRUSTED' || VERIFY_CODES.has(code))
      return new MeshError('HM_CA_UNTRUSTED', `Cannot trust the CA at ${this.address}`, {
        cause: thrown,
        hint: 'Another CA answers there, or its root was replaced while this host was away: enroll with a new token',
      })
    if (thrown instanceof BodyTooLong)
      return new MeshError('HM_CA_ANSWER_MALFORMED', 'The answer of the CA is too large')
    return new MeshError('HM_CA_UNREACHABLE', `Cannot reach the CA at ${this.address}`, {
      cause: thrown,
    })
  }

  /** For a message: the validity of the server's certificate. Connects again, sends nothing, trusts nothing. */
  async #serverWindow(): Promise<string> {
    const address = { host: this.#host, port: this.#port }
    const socket = tlsConnect({ ...address, rejectUnauthorized: false })
    try {
      await once(socket, 'secureConnect', { signal: AbortSignal.timeout(3_000) })
      const { validFromDate, validToDate } = socket.getPeerX509Certificate() ?? {}
      if (validFromDate === undefined || validToDate === undefined) return 'at another time'
      return `from ${timeText(validFromDate.getTime())} to ${timeText(validToDate.getTime())}`
    } catch {
      return 'at another time'
    } finally {
      socket.on('error', () => undefined).destroy()
    }
  }
}

/** OpenSSL's codes for a certificate that does not lead to one of our roots. */
const VERIFY_CODES: ReadonlySet<string> = new Set([
  'SELF_SIGNED_CERT_IN_CHAIN',
  'DEPTH_ZERO_SELF_SIGNED_CERT',
  'UNABLE_TO_VERIFY_LEAF_SIGNATURE',
  'UNABLE_TO_GET_ISSUER_CERT',
  'UNABLE_TO_GET_ISSUER_CERT_LOCALLY',
  'CERT_SIGNATURE_FAILURE',
  'INVALID_PURPOSE',
])

function parseRoot(pem: string): X509Certificate | undefined {
  try {
    return new X509Certificate(pem)
  } catch {
    return undefined
  }
}

/** Text from the peer, as one line of limited length. */
function printable(text: string): string {
  return text.replaceAll(/\p{Cc}+/gu, ' ').slice(0, 512)
}

function timeText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}
