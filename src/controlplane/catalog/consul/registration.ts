/**
 * Registers this host's services at its agent, and keeps them registered.
 *
 * Each service with a target has two registrations in Consul: the plain service (for discovery and operators) and a
 * `connect-proxy` named `<service>-hostmesh` on the tunnel port, through which any Connect caller finds it. A plain
 * service that the operator registered is not changed, nor restored when the operator removes it. One that was never
 * there is registered too, with a TCP check of the application, and deregistered together with the proxy.
 *
 * The proxy has one check, a TTL check that this daemon updates with the health of the plain service, and that turns
 * critical when the updates stop. An alias check would follow the plain service by itself, but not always: an agent
 * that starts drops what the check finds before it is listed, and has it as critical for a minute (Consul 1.8.7, at 1
 * restart of 8). The state of a TTL check is on the agent's disk.
 */
import { Retry } from '../../../lib/backoff.ts'
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { WakeableLoop } from '../../../lib/wakeable-loop.ts'
import type { SocketAddress } from '../../../model/address.ts'
import type { Health } from '../../../model/endpoint.ts'
import type { LocalService } from '../../../model/service.ts'
import { AgentServices } from './agent-services.ts'
import type { AgentService } from './decode-agent.ts'
import { type OwnHealth, OwnHealthHistory } from './own-health.ts'
import {
  type ConsulProxyRegistration,
  hasProxy,
  planRegistration,
  proxyIdOf,
  type RegistrationPlan,
  ttlCheckIdOf,
} from './registration-plan.ts'
import type { ConsulTransport } from './transport.ts'

/** What the registrar is built from. */
export interface RegistrarOptions {
  readonly transport: ConsulTransport
  readonly log: Log
  /** Where other hosts reach this one. Default: the agent's address. */
  readonly nodeAddress?: string | undefined
  /** Where this host listens for scrapes, if it does. */
  readonly metrics?: SocketAddress | undefined
  readonly clock?: Clock
  readonly random?: Random
  /** Milliseconds between two reads of the agent's services. */
  readonly checkEveryMs?: number
}

/** How often the agent's own list of services is read: a local answer of less than a millisecond. */
const CHECK_EVERY_MS = 2_000

/** How often the TTL checks are updated; they expire after 30 s. */
const BEAT_MS = 10_000

/**
 * Short delays after a failure. An agent that was down for longer than the TTL of our checks takes them for critical
 * when it is back, and reports that to the servers as soon as it has joined them: the update should arrive first.
 */
const RETRY = { minMs: 300, maxMs: 1_000 }

/** Deadline of deregister(), milliseconds. */
const DEREGISTER_MS = 5_000

/** Maintains registrations. It reads the agent at once and from then on, also with nothing to register. */
export class Registrar implements Disposable {
  readonly #options: RegistrarOptions
  readonly #clock: Clock
  readonly #agent: AgentServices
  readonly #closing = new AbortController()
  readonly #retry: Retry
  readonly #loop: WakeableLoop
  readonly #healthHistory: OwnHealthHistory
  #desired: readonly LocalService[] = []
  /** The services registered last; deregister() keeps them, so that their registrations can still be read. */
  #kept: readonly LocalService[] = []
  #tunnelPort = 0
  /** Services that the operator deregistered while their proxies were registered. */
  #withdrawn: ReadonlySet<string> = new Set()
  #beatenAtMs = Number.NEGATIVE_INFINITY
  /** The health last sent to the TTL check of each service. */
  readonly #reportedHealth = new Map<string, Health>()
  #lastGoodAtMs: number | undefined
  #unreachable: string | undefined
  #problems: readonly string[] = []

  constructor(options: RegistrarOptions) {
    const { transport, log, clock = systemClock, random = systemRandom } = options
    this.#options = options
    this.#clock = clock
    this.#agent = new AgentServices(transport, log)
    this.#healthHistory = new OwnHealthHistory(clock)
    this.#retry = new Retry(RETRY, clock, random)
    const { signal } = this.#closing
    this.#loop = new WakeableLoop({ clock, signal, pass: () => this.#look() })
  }

  /**
   * Registers these services instead of any given before. Resolves after the first attempt; a failure is one of
   * {@link Registrar.problems}, and is retried until it succeeds.
   */
  async register(services: readonly LocalService[], tunnelPort: number): Promise<void> {
    this.#desired = services
    this.#kept = services
    this.#tunnelPort = tunnelPort
    // The agent may have their proxies from before a crash, with checks last updated at an unknown time.
    this.#beatenAtMs = Number.NEGATIVE_INFINITY
    await this.#loop.serialize(() => this.#look())
    this.#loop.wake()
  }

  /** Removes all our registrations. Never throws; takes {@link DEREGISTER_MS} at most. */
  async deregister(): Promise<void> {
    this.#desired = []
    // The deadline also covers a pass that is still in progress.
    await Promise.race([
      this.#loop.serialize(() => this.#removeAll()),
      this.#clock.sleep(DEREGISTER_MS, this.#closing.signal),
    ])
  }

  /** Stops maintaining registrations until the next register(); existing ones stay. */
  leave(): void {
    this.#desired = []
    // Without the port no registration at the agent is recognized as ours.
    this.#tunnelPort = 0
  }

  problems(): readonly string[] {
    return this.#unreachable === undefined ? this.#problems : [this.#unreachable, ...this.#problems]
  }

  /** Monotonic milliseconds of the agent's last good answer. */
  lastGoodAtMs(): number | undefined {
    return this.#lastGoodAtMs
  }

  /** Stops maintaining; existing registrations stay, and turn critical when their TTL checks expire. */
  [Symbol.dispose](): void {
    this.#closing.abort()
  }

  /** One pass over the agent's services; returns how long to wait for the next. */
  async #look(): Promise<number> {
    const { signal } = this.#closing
    if (signal.aborted) return 0
    try {
      const failures = await this.#keep(signal)
      if (failures.length > 0) return this.#retry.failed()
      this.#retry.reset()
      return this.#options.checkEveryMs ?? CHECK_EVERY_MS
    } catch (error) {
      if (signal.aborted) return 0
      this.#unreachable = describeError(error)
      return this.#retry.failed()
    }
  }

  /** Registers what is missing, removes what is left over, updates the checks. Returns what failed. */
  async #keep(signal: AbortSignal): Promise<readonly string[]> {
    const present = await this.#readAgent(signal)
    const plan = this.#plan(this.#desired, present)
    this.#withdrawn = plan.withdrawn
    const isTimeToBeat =
      this.#unreachable !== undefined || this.#clock.monotonicMs() - this.#beatenAtMs >= BEAT_MS
    // A check that was never updated is lost when the agent restarts, so a new one is updated at the next pass.
    if (plan.proxies.length > 0) this.#beatenAtMs = Number.NEGATIVE_INFINITY
    else if (isTimeToBeat) this.#beatenAtMs = this.#clock.monotonicMs()
    this.#unreachable = undefined
    const failures = [
      ...(await failuresOf(plan.plain.map((service) => this.#agent.registerPlain(service)))),
      // After the plain services: one that was lost has the initial health of its new registration.
      ...(await failuresOf([this.#readHealth()])),
      ...(await failuresOf(plan.proxies.map((proxy) => this.#registerProxy(proxy)))),
      ...(await failuresOf(plan.remove.map((id) => this.#agent.deregister(id)))),
      ...(await failuresOf(this.#beats(present, isTimeToBeat))),
    ]
    this.#report([...plan.problems, ...failures])
    return failures
  }

  #plan(
    desired: readonly LocalService[],
    present: ReadonlyMap<string, AgentService>,
  ): RegistrationPlan {
    return planRegistration(desired, this.#tunnelPort, present, {
      nodeAddress: this.#options.nodeAddress,
      metrics: this.#options.metrics,
      withdrawn: this.#withdrawn,
    })
  }

  async #readAgent(signal: AbortSignal): Promise<ReadonlyMap<string, AgentService>> {
    const ownIds = this.#kept.flatMap(({ id }) => [id, proxyIdOf(id)])
    const services = await this.#agent.read(ownIds, signal)
    this.#lastGoodAtMs = this.#clock.monotonicMs()
    return services
  }

  /** Reads the health of this host's services. A service about which nothing is known keeps its health. */
  async #readHealth(): Promise<void> {
    const ids = this.#desired.filter(({ target }) => target !== undefined).map(({ id }) => id)
    if (ids.length === 0) return
    const read = await this.#agent.readHealth(ids, this.#closing.signal)
    this.#healthHistory.take(read, this.#withdrawn)
  }

  async #registerProxy(proxy: ConsulProxyRegistration): Promise<void> {
    const id = proxy.Proxy.DestinationServiceID
    this.#reportedHealth.delete(id)
    const health = this.#healthHistory.of(id)?.health ?? 'critical'
    await this.#agent.registerProxy(proxy, health, this.#closing.signal)
  }

  /** Updates the checks that are due: all of them from time to time, and those whose health has changed. */
  #beats(present: ReadonlyMap<string, AgentService>, isTimeToBeat: boolean): Promise<void>[] {
    return this.#desired.flatMap((service) => {
      const now = this.#healthHistory.of(service.id)
      if (now === undefined || !hasProxy(present, service.id)) return []
      const isDue = isTimeToBeat || this.#reportedHealth.get(service.id) !== now.health
      return isDue ? [this.#beat(service, now, present)] : []
    })
  }

  /** Updates the TTL check; a check that is missing is restored with its proxy. */
  async #beat(
    service: LocalService,
    now: OwnHealth,
    present: ReadonlyMap<string, AgentService>,
  ): Promise<void> {
    const checkId = ttlCheckIdOf(service.id)
    try {
      await this.#agent.beat(checkId, now.health, now.failing ?? 'The daemon is up')
      this.#reportedHealth.set(service.id, now.health)
    } catch (error) {
      this.#options.log.debug('Check is missing', { id: checkId, reason: describeError(error) })
      // Meanwhile leave() or deregister() may have given it up: it must not be registered once more.
      if (!this.#desired.includes(service)) return
      const others = new Map(present)
      others.delete(proxyIdOf(service.id))
      const plan = this.#plan([service], others)
      await Promise.all(plan.proxies.map((proxy) => this.#registerProxy(proxy)))
    }
  }

  #report(problems: readonly string[]): void {
    for (const problem of problems)
      if (!this.#problems.includes(problem))
        this.#options.log.warn('Registration is not as it should be', { problem })
    this.#problems = problems
  }

  async #removeAll(): Promise<void> {
    if (this.#tunnelPort === 0 || this.#closing.signal.aborted) return
    try {
      const present = await this.#readAgent(AbortSignal.timeout(DEREGISTER_MS))
      const { remove } = this.#plan([], present)
      const failures = await failuresOf(remove.map((id) => this.#agent.deregister(id)))
      for (const problem of failures) this.#options.log.warn('Could not deregister', { problem })
    } catch (error) {
      this.#options.log.warn(
        'Could not deregister; the checks of the proxies will fail by themselves',
        {
          problem: describeError(error),
        },
      )
    }
    this.#problems = []
  }
}

/** Waits for all; returns the messages of those that failed. */
async function failuresOf(work: readonly Promise<void>[]): Promise<readonly string[]> {
  const results = await Promise.allSettled(work)
  return results
    .filter((result) => result.status === 'rejected')
    .map((result) => describeError(result.reason))
}
