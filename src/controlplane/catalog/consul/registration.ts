/**
 * Makes this host's services known through its agent, and keeps them known.
 *
 * Each service with a target stands in Consul as two: the plain service (what discovery and operators see)
 * and a `connect-proxy` named `<service>-hostmesh` on the tunnel port, which is how any Connect caller
 * finds it. A plain service that the operator registered is left alone, also when the operator takes it away; one
 * that was never there is registered too, with a TCP check of the application, and taken back together with the proxy.
 *
 * The proxy has one check, a TTL check that this daemon beats with the health of the plain service, and that turns critical when
 * the beats stop. An alias check would follow the plain service by itself, but not always: an agent that starts drops
 * what the check finds before it is listed, and has it as critical for a minute (Consul 1.8.7, at 1 restart of 8). The
 * state of a TTL check is on the agent's disk.
 */
import Consul from 'consul'
import { backoffMs } from '../../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, errorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { Health } from '../../../model/endpoint.ts'
import type { LocalService } from '../../../model/service.ts'
import { type AgentService, decodeAgentServices } from './decode.ts'
import { decodeOwnHealth, hasNotRun, type OwnHealth, ownChecksPath } from './own-health.ts'
import {
  beginningAs,
  type ConsulProxyRegistration,
  type PlainRegistration,
  planRegistration,
  proxyIdOf,
  ttlCheckIdOf,
} from './registration-plan.ts'
import { writeRule } from './rights.ts'
import { type ConsulTransport, forbidden, requireOk } from './transport.ts'

/** Keeps registrations in place. */
export interface Registrar {
  /**
   * Registers these in place of any given before. Resolves after the first try; when that fails it is one
   * of {@link Registrar.problems}, and tried again until it works.
   */
  register(services: readonly LocalService[], tunnelPort: number): Promise<void>
  /** Takes back all of ours. Never throws; takes {@link DEREGISTER_MS} at most. */
  deregister(): Promise<void>
  /** Keeps nothing more until the next register(); what is registered stays. */
  leave(): void
  problems(): readonly string[]
  /** Monotonic milliseconds of the agent's last good answer. */
  lastGoodAtMs(): number | undefined
  /** Stops keeping; what is registered stays, and turns critical when its TTL check runs out. */
  close(): void
}

/** What the registrar is built from. */
export interface RegistrarOptions {
  readonly transport: ConsulTransport
  readonly log: Log
  /** Where other hosts reach this one; the agent's address unless given. */
  readonly nodeAddress?: string | undefined
  readonly clock?: Clock
  readonly random?: Random
  /** Milliseconds between two looks at the agent. */
  readonly lookMs?: number
}

/** The agent's own list of services is looked at this often: a local answer of less than a millisecond. */
const LOOK_MS = 2_000

/** The TTL checks are beaten this often; they run out after 30 s. */
const BEAT_MS = 10_000

/**
 * After a failure: soon. An agent that was away for longer than our checks may go without a beat takes them for
 * critical when it is back, and tells the servers so as soon as it has joined them: the beat should come first.
 */
const RETRY = { minMs: 300, maxMs: 1_000 }

/**
 * A service whose checks have not run since its agent started is as well as before, for so long: an agent runs a check for the
 * first time at any moment of its interval. Milliseconds.
 */
const NOT_RUN_MS = 10_000

const WITHDRAWN: OwnHealth = {
  health: 'critical',
  failing: 'Service is not registered',
  critical: [],
  speaking: new Set(),
}

/** Deadline of deregister(), milliseconds. */
const DEREGISTER_MS = 5_000

/** A registrar. It looks at the agent at once and from then on, also with nothing to register. */
export function createRegistrar(options: RegistrarOptions): Registrar {
  const { transport, log, clock = systemClock, random = systemRandom } = options
  const lookMs = options.lookMs ?? LOOK_MS
  const closing = new AbortController()
  const consul = new Consul({ ...packageAddress(transport.address), agent: transport.plainAgent })
  let desired: readonly LocalService[] = []
  /** Those, and after they are to be taken back still those. */
  let kept: readonly LocalService[] = []
  /** Whether the agent's own list is too large to be read. */
  let isCrowded = false
  let tunnelPort = 0
  let turn: Promise<void> = Promise.resolve()
  let napping = new AbortController()
  let isWoken = false
  let failures = 0
  let lastGoodAtMs: number | undefined
  let beatenAtMs = Number.NEGATIVE_INFINITY
  /** How each service was at the last look that told, by ID. */
  let healthById: ReadonlyMap<string, OwnHealth> = new Map()
  /** When the checks of a service were first found not to have run. */
  const notRunSinceMs = new Map<string, number>()
  /** What the TTL check of each has been told. */
  const told = new Map<string, Health>()
  let unreachable: string | undefined
  let problems: readonly string[] = []

  /** One after the other: a look at the agent never overlaps a deregistration. */
  function inTurn(act: () => Promise<void>): Promise<void> {
    turn = turn.then(act)
    return turn
  }

  /** Token and deadline of one call through the package, whose types know neither. */
  function callOptions(): { timeout: number; token?: string } {
    const token = transport.token()
    const timeout = transport.requestTimeoutMs
    return token === undefined ? { timeout } : { timeout, token }
  }

  async function registerPlain(service: PlainRegistration): Promise<void> {
    const registered = consul.agent.service.register({
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
      ...callOptions(),
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
    log.info('Registered service', { service: service.name, id: service.id, port: service.port })
  }

  /** How the services of this host are. One of which nothing can be said is as it was. */
  async function readHealth(withdrawn: ReadonlySet<string>): Promise<void> {
    const ids = desired.filter(({ target }) => target !== undefined).map(({ id }) => id)
    if (ids.length === 0) return
    const { signal } = closing
    const answer = await transport.call('GET', ownChecksPath(ids), { signal })
    const read = decodeOwnHealth(requireOk(answer, 'reading /v1/agent/checks').body, ids)
    healthById = new Map(
      [...read].map(([id, now]) => [id, withdrawn.has(id) ? WITHDRAWN : judged(id, now)]),
    )
  }

  function judged(id: string, now: OwnHealth): OwnHealth {
    const before = healthById.get(id)
    if (before === undefined || !hasNotRun(before, now)) {
      notRunSinceMs.delete(id)
      return now
    }
    const sinceMs = notRunSinceMs.get(id) ?? clock.monotonicMs()
    notRunSinceMs.set(id, sinceMs)
    return clock.monotonicMs() - sinceMs < NOT_RUN_MS ? before : now
  }

  async function registerProxy(proxy: ConsulProxyRegistration): Promise<void> {
    const id = proxy.Proxy.DestinationServiceID
    told.delete(id)
    // Not by the package: its register() drops `Kind`, and so makes a plain service of a proxy. Checks that an
    // earlier version has given it go.
    const answer = await transport.call(
      'PUT',
      '/v1/agent/service/register?replace-existing-checks=true',
      {
        body: beginningAs(healthById.get(id)?.health ?? 'critical', proxy),
        signal: closing.signal,
      },
    )
    const rule = [proxy.Proxy.DestinationServiceName, proxy.Name].map(writeRule).join(' ')
    requireOk(answer, `registering ${proxy.ID}`, rule)
    log.info('Registered proxy', { id: proxy.ID, port: proxy.Port })
  }

  async function remove(id: string): Promise<void> {
    await consul.agent.service.deregister({ id, ...callOptions() })
    log.info('Deregistered', { id })
  }

  /** Beats the TTL check; a check that is gone comes back with its proxy. */
  async function beat(
    service: LocalService,
    now: OwnHealth,
    present: ReadonlyMap<string, AgentService>,
  ): Promise<void> {
    const { check } = consul.agent
    const id = ttlCheckIdOf(service.id)
    const said = { id, note: now.failing ?? 'The daemon is up', ...callOptions() }
    try {
      if (now.health === 'passing') await check.pass(said)
      else if (now.health === 'warning') await check.warn(said)
      else await check.fail(said)
      told.set(service.id, now.health)
    } catch (error) {
      log.debug('Check is missing', { id, reason: describeError(error) })
      // A proxy that forgot whose service it stood for would bring it back.
      if (now === WITHDRAWN) return
      const others = new Map(present)
      others.delete(proxyIdOf(service.id))
      await Promise.all(
        planRegistration([service], tunnelPort, others, options.nodeAddress).proxies.map(
          registerProxy,
        ),
      )
    }
  }

  /** What the agent has; of ours alone where others have registered more than can be read. */
  async function readAgent(signal: AbortSignal): Promise<ReadonlyMap<string, AgentService>> {
    const body = await readAll(signal).catch((error: unknown) => {
      if (errorCode(error) !== 'HM_CONSUL_ANSWER_TOO_LARGE') throw error
      if (!isCrowded)
        log.warn(
          'The agent has more services than can be read: what an earlier run has left there stays',
        )
      isCrowded = true
      return readOwn(signal)
    })
    const services = decodeAgentServices(body)
    lastGoodAtMs = clock.monotonicMs()
    return services
  }

  async function readAll(signal: AbortSignal): Promise<unknown> {
    const answer = await transport.call('GET', '/v1/agent/services', { signal })
    const { body } = requireOk(answer, 'reading /v1/agent/services')
    isCrowded = false
    return body
  }

  /** The same document with the services of this host and their proxies, one by one. */
  async function readOwn(signal: AbortSignal): Promise<unknown> {
    const own: Record<string, unknown> = {}
    for (const id of kept.flatMap((service) => [service.id, proxyIdOf(service.id)])) {
      const path = `/v1/agent/service/${encodeURIComponent(id)}`
      const answer = await transport.call('GET', path, { signal })
      if (answer.status !== 404) own[id] = requireOk(answer, `reading ${path}`).body
    }
    return own
  }

  /** One look: register what is missing, take back what is left over, beat the rest. */
  async function keep(): Promise<void> {
    if (closing.signal.aborted) return
    try {
      const present = await readAgent(closing.signal)
      const plan = planRegistration(desired, tunnelPort, present, options.nodeAddress)
      const isTimeToBeat = unreachable !== undefined || clock.monotonicMs() - beatenAtMs >= BEAT_MS
      // What was never beaten is forgotten when the agent restarts, so what is new is beaten at the next look.
      if (plan.proxies.length > 0) beatenAtMs = Number.NEGATIVE_INFINITY
      else if (isTimeToBeat) beatenAtMs = clock.monotonicMs()
      unreachable = undefined
      const errors = [
        ...(await failuresOf(plan.plain.map(registerPlain))),
        // Only then: a plain service that was lost is as well as it begins.
        ...(await failuresOf([readHealth(new Set(plan.withdrawn))])),
        ...(await failuresOf(plan.proxies.map(registerProxy))),
        ...(await failuresOf(plan.remove.map(remove))),
      ]
      const beats = desired.flatMap((service) => {
        const now = healthById.get(service.id)
        if (now === undefined || !present.has(proxyIdOf(service.id))) return []
        const isDue = isTimeToBeat || told.get(service.id) !== now.health
        return isDue ? [beat(service, now, present)] : []
      })
      errors.push(...(await failuresOf(beats)))
      report([...plan.problems, ...errors])
      failures = errors.length === 0 ? 0 : failures + 1
    } catch (error) {
      if (closing.signal.aborted) return
      unreachable = describeError(error)
      failures += 1
    }
  }

  function report(now: readonly string[]): void {
    for (const problem of now)
      if (!problems.includes(problem)) log.warn('Registration is not as it should be', { problem })
    problems = now
  }

  async function run(): Promise<void> {
    while (!closing.signal.aborted) {
      isWoken = false
      await inTurn(keep)
      if (isWoken) continue
      napping = new AbortController()
      await clock.sleep(
        failures === 0 ? lookMs : backoffMs(failures, RETRY, random),
        AbortSignal.any([closing.signal, napping.signal]),
      )
    }
  }

  async function removeAll(): Promise<void> {
    if (tunnelPort === 0 || closing.signal.aborted) return
    const deadline = AbortSignal.timeout(DEREGISTER_MS)
    try {
      const present = await readAgent(deadline)
      const errors = await failuresOf(planRegistration([], tunnelPort, present).remove.map(remove))
      for (const problem of errors) log.warn('Could not deregister', { problem })
    } catch (error) {
      log.warn('Could not deregister; the checks of the proxies will fail by themselves', {
        problem: describeError(error),
      })
    }
    problems = []
  }

  setImmediate(() => void run())
  return {
    async register(services, port) {
      desired = services
      kept = services
      tunnelPort = port
      // The agent may have their proxies since before a crash, and how long ago those were beaten nobody knows.
      beatenAtMs = Number.NEGATIVE_INFINITY
      await inTurn(keep)
      isWoken = true
      napping.abort()
    },
    leave() {
      desired = []
      // Without it nothing at the agent is known for ours.
      tunnelPort = 0
    },
    async deregister() {
      desired = []
      // The deadline covers a look at the agent that is still under way, too.
      await Promise.race([inTurn(removeAll), clock.sleep(DEREGISTER_MS, closing.signal)])
    },
    problems: () => (unreachable === undefined ? problems : [unreachable, ...problems]),
    lastGoodAtMs: () => lastGoodAtMs,
    close: () => closing.abort(),
  }
}

/** Waits for all; the texts of those that failed. */
async function failuresOf(work: readonly Promise<void>[]): Promise<readonly string[]> {
  const results = await Promise.allSettled(work)
  return results
    .filter((result) => result.status === 'rejected')
    .map((result) => describeError(result.reason))
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
