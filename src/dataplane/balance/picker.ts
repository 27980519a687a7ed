/**
 * Picks the endpoint for the next connection, from the first priority that has an available one. It is the one whose
 * turn it is by weight (turns.ts), unless it is much slower (latency.ts), or has many more connections for its weight,
 * than another one drawn by weight. So equal endpoints get exactly their shares, and a slow one gives up its turns in
 * proportion to the others' weights: with weights 10 and 1 the light one gets 1 of 11; 1 of 121 when it is slow; and 21
 * of 121 when the heavy one is. Synchronous, no I/O; randomness and time are passed in.
 *
 * Critical endpoints are excluded, warning ones are not (like Consul's DNS and Envoy). When all are critical none is
 * picked: an immediate reset tells the caller more than a dead instance does. Ejected ones (outlier.ts) are excluded
 * while any other remains, of any priority; when none remains they are used.
 */
import type { Clock, Random } from '../../lib/clock.ts'
import type { FailureCost } from '../../model/ending.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import {
  type EndpointLoad,
  isSlower,
  latencyOf,
  observeFailure,
  observeSuccess,
  untriedLoad,
} from './latency.ts'
import { type Ejection, OutlierDetector } from './outlier.ts'
import { Turns } from './turns.ts'

/** Limit of remembered loads; at the limit those without connections are dropped. */
const MAX_LOADS = 100_000

/** After this many turns of unavailable endpoints, a random one of the available ones is picked. */
const MAX_PASSED_OVER = 16

/** An endpoint has too many connections when it exceeds another's, relative to weight, by this factor … */
const LOADED_FACTOR = 2

/** … and by this number. */
const LOADED_BY = 8

/** The state of an endpoint in the balancer of one worker. */
export interface EndpointStanding {
  readonly inFlight: number
  readonly failures: number
  /** How slow it is estimated to be, milliseconds: one much slower than another is passed over. */
  readonly cost: number
  /** Why it is ejected; null when it is not, or when the next connection may try it. */
  readonly ejectionReason: string | null
}

/** How an attempt failed. */
export interface Failure {
  readonly cost: FailureCost
  /** Text for operators. */
  readonly reason: string
}

/** Picks endpoints and learns from the results. One per worker. */
export class Balancer {
  private readonly loads = new Map<string, EndpointLoad>()
  /** By the list of endpoints, which is a new one after each change; then by the index at which a priority begins. */
  private readonly turns = new WeakMap<readonly Endpoint[], Map<number, Turns | undefined>>()
  private readonly outliers = new OutlierDetector()
  private readonly clock: Clock
  private readonly random: Random

  constructor(clock: Clock, random: Random) {
    this.clock = clock
    this.random = random
  }

  /** Number of endpoints that are ejected now. */
  get ejectedCount(): number {
    return this.outliers.ejectedCount
  }

  /** Call it about once a second: forgets old failures. */
  tick(): void {
    this.outliers.sweep(this.clock.monotonicMs())
  }

  /** The endpoints that are ejected now, and why. */
  ejections(): readonly Ejection[] {
    return this.outliers.list(this.clock.monotonicMs())
  }

  /**
   * Returns an endpoint that is not critical and not in `except`; undefined when there is none. `endpoints` must be in
   * order of priority.
   */
  pick(endpoints: readonly Endpoint[], except: ReadonlySet<string>): Endpoint | undefined {
    const count = endpoints.length
    if (count === 0) return undefined
    if (count === 1) {
      const only = endpoints[0]
      return only !== undefined && isOffered(only, except) ? only : undefined
    }
    for (let start = 0, end = 0; start < count; start = end) {
      end = endOfGroup(endpoints, start)
      const picked = this.pickAvailable(endpoints, start, end, except)
      if (picked !== undefined) return picked
    }
    if (this.outliers.ejectedCount === 0) return undefined
    for (let start = 0, end = 0; start < count; start = end) {
      end = endOfGroup(endpoints, start)
      const picked = this.anyOf(endpoints, start, end, (endpoint) => isOffered(endpoint, except))
      if (picked !== undefined) return picked
    }
    return undefined
  }

  /** Whether {@link pick} would find an endpoint that is not ejected. */
  hasOther(endpoints: readonly Endpoint[], except: ReadonlySet<string>): boolean {
    return endpoints.some(
      (endpoint) => isOffered(endpoint, except) && this.outliers.isInUse(endpoint.key),
    )
  }

  /** A connection attempt begins. */
  started(endpoint: Endpoint): void {
    this.load(endpoint.key).inFlight += 1
    if (this.outliers.ejectedCount > 0)
      this.outliers.started(endpoint.key, this.clock.monotonicMs())
  }

  /** The attempt reached the application. It counts as a connection until {@link finished}. */
  succeeded(endpoint: Endpoint, tookMs: number): void {
    const load = this.load(endpoint.key)
    const nowMs = this.clock.monotonicMs()
    if (this.outliers.succeeded(endpoint.key, nowMs)) {
      // The estimate from before the ejection is no longer meaningful.
      load.estimateMs = tookMs
      load.deviationMs = 0
      load.updatedAtMs = nowMs
    }
    observeSuccess(load, tookMs, nowMs)
  }

  /**
   * The attempt did not reach the application. `endpoints` are all those of the service. `failure` is undefined when it
   * is not the instance's fault; the instance is then only less likely to be picked for a while. Returns whether it is
   * ejected from now on.
   */
  failed(
    endpoint: Endpoint,
    endpoints: readonly Endpoint[],
    failure: Failure | undefined,
  ): boolean {
    const nowMs = this.clock.monotonicMs()
    observeFailure(this.load(endpoint.key), nowMs)
    if (failure === undefined) return false
    return this.outliers.failed(endpoint.key, failure, nowMs, () =>
      this.mayEject(endpoint, endpoints),
    )
  }

  /** The connection, or the attempt, is over. For a failed attempt call {@link failed} first. */
  finished(endpoint: Endpoint): void {
    const load = this.load(endpoint.key)
    load.inFlight = Math.max(0, load.inFlight - 1)
    this.outliers.finished(endpoint.key)
  }

  private pickAvailable(
    endpoints: readonly Endpoint[],
    start: number,
    end: number,
    except: ReadonlySet<string>,
  ): Endpoint | undefined {
    const turns = this.turnsOf(endpoints, start, end)
    if (turns === undefined) return undefined
    let first: Endpoint | undefined
    for (let i = 0; i < MAX_PASSED_OVER && first === undefined; i += 1) {
      const next = turns.next()
      if (next !== undefined && this.isAvailable(next, except)) first = next
    }
    first ??= this.anyOf(endpoints, start, end, (endpoint) => this.isAvailable(endpoint, except))
    if (first === undefined) return undefined
    const second = turns.draw()
    if (second === undefined || second === first || !this.isAvailable(second, except)) return first
    // An endpoint due for a probe would lose every comparison because of its past, and would never be tried again.
    if (!this.outliers.isInUse(first.key)) return first
    if (!this.outliers.isInUse(second.key)) return second
    return this.isPassedOver(first, second) ? second : first
  }

  /** Whether the connection goes to `second` although it is the turn of `first`. */
  private isPassedOver(first: Endpoint, second: Endpoint): boolean {
    const nowMs = this.clock.monotonicMs()
    const load = this.load(first.key)
    const other = this.load(second.key)
    if (isSlower(other, load, nowMs)) return false
    return isSlower(load, other, nowMs) || holdsMore(first, load, second, other)
  }

  /**
   * The state of an endpoint as the picker compares it; undefined when it was never tried. For explanations: changes
   * nothing.
   */
  peek(endpoint: Endpoint): EndpointStanding | undefined {
    const load = this.loads.get(endpoint.key)
    if (load === undefined) return undefined
    const { inFlight, failures } = load
    return {
      inFlight,
      failures,
      cost: latencyOf(load, this.clock.monotonicMs()),
      ejectionReason: this.outliers.ejectionReason(endpoint.key, this.clock.monotonicMs()),
    }
  }

  /** The turns of a priority's endpoints; undefined when all of them are critical. */
  private turnsOf(endpoints: readonly Endpoint[], start: number, end: number): Turns | undefined {
    let groups = this.turns.get(endpoints)
    if (groups === undefined) {
      groups = new Map()
      this.turns.set(endpoints, groups)
    }
    if (groups.has(start)) return groups.get(start)
    const offered = endpoints
      .slice(start, end)
      .filter((endpoint) => exclusionOf(endpoint) === undefined)
    const turns = offered.length === 0 ? undefined : new Turns(offered, this.random)
    groups.set(start, turns)
    return turns
  }

  /** A random one, by weight, of those that `isMeant` accepts; examines all of them. */
  private anyOf(
    endpoints: readonly Endpoint[],
    start: number,
    end: number,
    isMeant: (endpoint: Endpoint) => boolean,
  ): Endpoint | undefined {
    let picked: Endpoint | undefined
    let sum = 0
    for (let i = start; i < end; i += 1) {
      const endpoint = endpoints[i]
      if (endpoint === undefined || !isMeant(endpoint)) continue
      sum += endpoint.weight
      if (this.random() * sum < endpoint.weight) picked = endpoint
    }
    return picked
  }

  private isAvailable(endpoint: Endpoint, except: ReadonlySet<string>): boolean {
    if (!isOffered(endpoint, except)) return false
    const { key } = endpoint
    return this.outliers.isInUse(key) || this.outliers.isDueForProbe(key, this.clock.monotonicMs())
  }

  /**
   * Half of the endpoints of one priority may be ejected; all of them when those of a later one can take over, which is
   * what failover is for. Of two endpoints one may be ejected, a single one never.
   */
  private mayEject(endpoint: Endpoint, endpoints: readonly Endpoint[]): boolean {
    let offered = 0
    let ejected = 0
    for (const other of endpoints) {
      if (other.health === 'critical') continue
      const isInUse = this.outliers.isInUse(other.key)
      if (other.priority > endpoint.priority && isInUse) return true
      if (other.priority !== endpoint.priority) continue
      offered += 1
      if (!isInUse) ejected += 1
    }
    return ejected + 1 <= offered / 2
  }

  private load(key: string): EndpointLoad {
    let load = this.loads.get(key)
    if (load === undefined) {
      if (this.loads.size >= MAX_LOADS)
        for (const [old, { inFlight }] of this.loads) if (inFlight === 0) this.loads.delete(old)
      load = untriedLoad(this.clock.monotonicMs())
      this.loads.set(key, load)
    }
    return load
  }
}

/**
 * Whether an endpoint has so many more connections for its weight than another that it is no accident: connections end
 * at any time, and the first one of a light endpoint counts as much as ten of a heavy one.
 */
function holdsMore(
  { weight }: Endpoint,
  { inFlight }: EndpointLoad,
  { weight: otherWeight }: Endpoint,
  other: EndpointLoad,
): boolean {
  const most = (LOADED_FACTOR * (other.inFlight + LOADED_BY / 2) * weight) / otherWeight
  return inFlight - LOADED_BY > most
}

/** Why an endpoint gets no connection, in any state of the others; undefined when it may. */
function exclusionOf(endpoint: Endpoint): string | undefined {
  return endpoint.health === 'critical' ? 'its health is critical' : undefined
}

/** Whether an endpoint may be picked, and if not, why. */
export interface Candidacy {
  readonly endpoint: Endpoint
  /** Undefined for a candidate. */
  readonly exclusionReason: string | undefined
}

/**
 * The endpoints from which {@link Balancer.pick} picks, for explanations: the available ones of the first priority that
 * has any; if there is none at all, the ejected ones of the first priority.
 * @param ejectionReason {@link EndpointStanding.ejectionReason} of an endpoint, null for one that was never tried
 */
export function candidates(
  endpoints: readonly Endpoint[],
  ejectionReason: (endpoint: Endpoint) => string | null,
): readonly Candidacy[] {
  const standings = endpoints.map((endpoint) => {
    const exclusionReason = exclusionOf(endpoint)
    return { endpoint, exclusionReason, ejectionReason: ejectionReason(endpoint) }
  })
  const offered = standings.filter(({ exclusionReason }) => exclusionReason === undefined)
  const available = offered.filter((standing) => standing.ejectionReason === null)
  const usable = available.length > 0 ? available : offered
  const first = Math.min(...usable.map(({ endpoint }) => endpoint.priority))
  return standings.map((standing) => {
    const { endpoint, exclusionReason } = standing
    if (exclusionReason !== undefined) return { endpoint, exclusionReason }
    if (!usable.includes(standing))
      return { endpoint, exclusionReason: `connections to it failed (${standing.ejectionReason})` }
    if (endpoint.priority === first) return { endpoint, exclusionReason: undefined }
    return { endpoint, exclusionReason: `it is for failover (step ${endpoint.priority})` }
  })
}

/** The index at which the priority of the endpoint at `start` ends: for most services the end of the list. */
function endOfGroup(endpoints: readonly Endpoint[], start: number): number {
  const priority = endpoints[start]?.priority
  let low = start
  let high = endpoints.length
  if (endpoints[high - 1]?.priority === priority) return high
  // The endpoint at `low` belongs to the group, the one at `high` does not.
  high -= 1
  while (high - low > 1) {
    const middle = (low + high) >> 1
    if (endpoints[middle]?.priority === priority) low = middle
    else high = middle
  }
  return high
}

function isOffered(endpoint: Endpoint, except: ReadonlySet<string>): boolean {
  return exclusionOf(endpoint) === undefined && !except.has(endpoint.key)
}
