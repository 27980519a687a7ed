/**
 * The API calls with which a host registers its services at its agent and reports their health.
 */
import Consul from 'consul'
import { describeError, errorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { Health } from '../../../model/endpoint.ts'
import { type AgentService, decodeAgentServices } from './decode-agent.ts'
import { decodeOwnHealth, type OwnHealth, ownChecksPath } from './own-health.ts'
import {
  type ConsulProxyRegistration,
  type PlainRegistration,
  withInitialHealth,
} from './registration-plan.ts'
import { writeRule } from './rights.ts'
import { type ConsulTransport, forbidden, requireOk } from './transport.ts'

/** The services of one agent. The transport stays the caller's. */
export class AgentServices {
  readonly #transport: ConsulTransport
  readonly #log: Log
  readonly #consul: Consul
  /** Whether the agent's full list of services is too large to read. */
  #isCrowded = false

  constructor(transport: ConsulTransport, log: Log) {
    this.#transport = transport
    this.#log = log
    this.#consul = new Consul({ ...packageAddress(transport.address), agent: transport.plainAgent })
  }

  /** The services of the agent; only those in `ownIds` when others have registered more than can be read. */
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

  /** The same document for these services only, read one by one. */
  async #readOwn(ids: readonly string[], signal: AbortSignal): Promise<unknown> {
    const own: Record<string, unknown> = {}
    for (const id of ids) {
      const path = `/v1/agent/service/${encodeURIComponent(id)}`
      const answer = await this.#transport.call('GET', path, { signal })
      if (answer.status !== 404) own[id] = requireOk(answer, `reading ${path}`).body
    }
    return own
  }

  /** The health of services of this host, by their checks. */
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
          // Otherwise the service would be critical from a restart of the daemon until the first check.
          status: 'passing',
        },
      ],
      ...this.#callOptions(),
    })
    // For a missing right the package reports only "forbidden".
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

  /** Its TTL check starts as `health`. */
  async registerProxy(
    proxy: ConsulProxyRegistration,
    health: Health,
    signal: AbortSignal,
  ): Promise<void> {
    // Not through the package: its register() drops `Kind`, which turns a proxy into a plain service. Checks that an
    // earlier version registered are removed.
    const answer = await this.#transport.call(
      'PUT',
      '/v1/agent/service/register?replace-existing-checks=true',
      { body: withInitialHealth(health, proxy), signal },
    )
    const rule = [proxy.Proxy.DestinationServiceName, proxy.Name].map(writeRule).join(' ')
    requireOk(answer, `registering ${proxy.ID}`, rule)
    this.#log.info('Registered proxy', { id: proxy.ID, port: proxy.Port })
  }

  async deregister(id: string): Promise<void> {
    await this.#consul.agent.service.deregister({ id, ...this.#callOptions() })
    this.#log.info('Deregistered', { id })
  }

  /** Updates a TTL check. */
  async beat(checkId: string, health: Health, note: string): Promise<void> {
    const { check } = this.#consul.agent
    const options = { id: checkId, note, ...this.#callOptions() }
    if (health === 'passing') await check.pass(options)
    else if (health === 'warning') await check.warn(options)
    else await check.fail(options)
  }

  /** Token and timeout of one call through the package; its types declare neither. */
  #callOptions(): { timeout: number; token?: string } {
    const token = this.#transport.token()
    const timeout = this.#transport.requestTimeoutMs
    return token === undefined ? { timeout } : { timeout, token }
  }
}

/** The HTTP status of an error from the package, if it has one. */
function statusOf(error: unknown): unknown {
  return error instanceof Error && 'statusCode' in error ? error.statusCode : undefined
}

/** What the package needs to build a URL; the HTTP agent passed to it chooses the socket. */
function packageAddress(address: string): { host?: string; port?: number; secure: boolean } {
  const url = URL.parse(address)
  if (url === null || url.protocol === 'unix:') return { secure: false }
  const secure = url.protocol === 'https:'
  const port = url.port === '' ? (secure ? 443 : 80) : Number(url.port)
  return { host: url.hostname, port, secure }
}
