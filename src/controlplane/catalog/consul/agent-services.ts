/**
 * The calls by which a host registers its services at its agent, and tells how they are.
 */
import Consul from 'consul'
import { describeError, errorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { Health } from '../../../model/endpoint.ts'
import { type AgentService, decodeAgentServices } from './decode.ts'
import { decodeOwnHealth, type OwnHealth, ownChecksPath } from './own-health.ts'
import {
  beginningAs,
  type ConsulProxyRegistration,
  type PlainRegistration,
} from './registration-plan.ts'
import { writeRule } from './rights.ts'
import { type ConsulTransport, forbidden, requireOk } from './transport.ts'

/** The services of one agent. The transport stays the caller's. */
export class AgentServices {
  readonly #transport: ConsulTransport
  readonly #log: Log
  readonly #consul: Consul
  /** Whether the agent's own list is too large to be read. */
  #isCrowded = false

  constructor(transport: ConsulTransport, log: Log) {
    this.#transport = transport
    this.#log = log
    this.#consul = new Consul({ ...packageAddress(transport.address), agent: transport.plainAgent })
  }

  /** What the agent has; of `ownIds` alone where others have registered more than can be read. */
  async read(
    ownIds: readonly string[],
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, AgentService>> {
    const body = await this.#readAll(signal).catch((error: unknown) => {
      if (errorCode(error) !== 'HM_CONSUL_ANSWER_TOO_LARGE') throw error
      if (!this.#isCrowded)
        this.#log.warn(
          'The agent has more services than can be read: what an earlier run has left there stays',
        )
      this.#isCrowded = true
      return this.#readOwn(ownIds, signal)
    })
    return decodeAgentServices(body)
  }

  async #readAll(signal: AbortSignal): Promise<unknown> {
    const answer = await this.#transport.call('GET', '/v1/agent/services', { signal })
    const { body } = requireOk(answer, 'reading /v1/agent/services')
    this.#isCrowded = false
    return body
  }

  /** The same document with these services, one by one. */
  async #readOwn(ids: readonly string[], signal: AbortSignal): Promise<unknown> {
    const own: Record<string, unknown> = {}
    for (const id of ids) {
      const path = `/v1/agent/service/${encodeURIComponent(id)}`
      const answer = await this.#transport.call('GET', path, { signal })
      if (answer.status !== 404) own[id] = requireOk(answer, `reading ${path}`).body
    }
    return own
  }

  /** How services of this host are by their checks. */
  async readHealth(
    ids: readonly string[],
    signal: AbortSignal,
  ): Promise<ReadonlyMap<string, OwnHealth>> {
    const answer = await this.#transport.call('GET', ownChecksPath(ids), { signal })
    return decodeOwnHealth(requireOk(answer, 'reading /v1/agent/checks').body, ids)
  }

  async registerPlain(service: PlainRegistration): Promise<void> {
    const registered = this.#consul.agent.service.register({
      name: service.name,
      id: service.id,
      port: service.port,
      meta: service.meta,
      checks: [
        {
          name: `${service.name} listens`,
          checkid: `hostmesh-app:${service.id}`,
          tcp: service.checkAddress,
          interval: '5s',
          timeout: '2s',
          // Else a restart of the daemon would cost the service its health until the first check.
          status: 'passing',
        },
      ],
      ...this.#callOptions(),
    })
    // The package says no more than "forbidden" of a missing right.
    await registered.catch((cause: unknown) => {
      if (statusOf(cause) === 403)
        throw forbidden(`registering ${service.id}`, describeError(cause), writeRule(service.name))
      throw new MeshError(
        'HM_CONSUL_REGISTRATION_FAILED',
        `Cannot register ${service.id} (service:write on ${service.name})`,
        { cause },
      )
    })
    this.#log.info('Registered service', {
      service: service.name,
      id: service.id,
      port: service.port,
    })
  }

  /** Its TTL check begins as `health`. */
  async registerProxy(
    proxy: ConsulProxyRegistration,
    health: Health,
    signal: AbortSignal,
  ): Promise<void> {
    // Not by the package: its register() drops `Kind`, and so makes a plain service of a proxy. Checks that an
    // earlier version has given it go.
    const answer = await this.#transport.call(
      'PUT',
      '/v1/agent/service/register?replace-existing-checks=true',
      { body: beginningAs(health, proxy), signal },
    )
    const rule = [proxy.Proxy.DestinationServiceName, proxy.Name].map(writeRule).join(' ')
    requireOk(answer, `registering ${proxy.ID}`, rule)
    this.#log.info('Registered proxy', { id: proxy.ID, port: proxy.Port })
  }

  async deregister(id: string): Promise<void> {
    await this.#consul.agent.service.deregister({ id, ...this.#callOptions() })
    this.#log.info('Deregistered', { id })
  }

  /** Beats a TTL check. */
  async beat(checkId: string, health: Health, note: string): Promise<void> {
    const { check } = this.#consul.agent
    const options = { id: checkId, note, ...this.#callOptions() }
    if (health === 'passing') await check.pass(options)
    else if (health === 'warning') await check.warn(options)
    else await check.fail(options)
  }

  /** Token and deadline of one call through the package, whose types know neither. */
  #callOptions(): { timeout: number; token?: string } {
    const token = this.#transport.token()
    const timeout = this.#transport.requestTimeoutMs
    return token === undefined ? { timeout } : { timeout, token }
  }
}

/** The HTTP status with which the package's error came, if any. */
function statusOf(error: unknown): unknown {
  return error instanceof Error && 'statusCode' in error ? error.statusCode : undefined
}

/** What the package needs to form a URL; which socket it uses is decided by the HTTP agent it is given. */
function packageAddress(address: string): { host?: string; port?: number; secure: boolean } {
  const url = URL.parse(address)
  if (url === null || url.protocol === 'unix:') return { secure: false }
  const secure = url.protocol === 'https:'
  const port = url.port === '' ? (secure ? 443 : 80) : Number(url.port)
  return { host: url.hostname, port, secure }
}
