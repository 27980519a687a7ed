/**
 * Which endpoint takes the next connection: of the first priority that has an available one, power of two
 * choices over {@link costOf}. Synchronous, no I/O; chance and time are passed in.
 *
 * Critical endpoints are left out, warning ones stay (as Consul's DNS and Envoy have it). When all are
 * critical nobody is picked: a reset at once tells the caller more than a dead instance does. Ejected ones (see
 * outlier.ts) are left out while anybody else remains, of whatever priority; when nobody does they are used.
 */
import type { Clock, Random } from '../../lib/clock.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import { type Ejection, type FailureCost, OutlierDetector } from './outlier.ts'
import {
  costOf,
  type EndpointLoad,
  observeFailure,
  observeSuccess,
  untriedLoad,
} from './peak-ewma.ts'

/** Loads remembered of endpoints that are gone; beyond it those without traffic are dropped. */
const MAX_LOADS = 100_000

/** How an endpoint stands with the balancer of one worker. */
export interface EndpointStanding {
  readonly inFlight: number
  readonly failures: number
  /** Lower is taken. */
  readonly cost: number
  /** Why it is avoided while anybody else remains; null when it is not. */
  readonly ejectedFor: string | null
}

/** How a try failed. */
export interface Failure {
  readonly cost: FailureCost
  /** For operators. */
  readonly reason: string
}

/** Picks endpoints and learns from what comes of it. One per worker. */
export class Balancer {
  private readonly loads = new Map<string, EndpointLoad>()
  private readonly outliers = new OutlierDetector()
  private readonly clock: Clock
  private readonly random: Random

  constructor(clock: Clock, random: Random) {
    this.clock = clock
    this.random = random
  }

  /** Endpoints that are avoided now. */
  get ejectedCount(): number {
    return this.outliers.ejectedCount
  }

  /** Once a second or so: forgets what is of no use any more. */
  tick(): void {
    this.outliers.sweep(this.clock.monotonicMs())
  }

  /** Endpoints that are avoided now, and why. */
  ejections(): readonly Ejection[] {
    return this.outliers.list(this.clock.monotonicMs())
  }

  /**
   * An endpoint that is not critical and not in `except`; undefined when there is none. `endpoints` come in the
   * order of their priority.
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
      const picked = this.candidate(endpoints, start, end, except, true)
      if (picked !== undefined) return picked
    }
    return undefined
  }

  /** A try begins. */
  started(endpoint: Endpoint): void {
    this.load(endpoint.key).inFlight += 1
    if (this.outliers.ejectedCount > 0)
      this.outliers.started(endpoint.key, this.clock.monotonicMs())
  }

  /** The try reached the application. It stays in flight until {@link finished}. */
  succeeded(endpoint: Endpoint, tookMs: number): void {
    const load = this.load(endpoint.key)
    const nowMs = this.clock.monotonicMs()
    if (this.outliers.succeeded(endpoint.key, nowMs)) {
      // What it was like before it was ejected says nothing any more.
      load.estimateMs = tookMs
      load.updatedAtMs = nowMs
    }
    observeSuccess(load, tookMs, nowMs)
  }

  /**
   * The try did not reach the application. `endpoints` are all of the service; `failure` is undefined when it says
   * nothing against the instance, which is then only less likely to be picked for a while. Returns whether it is
   * avoided from now on.
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

  /** The connection, or the try, is over; of a try that came to nothing tell it {@link failed} first. */
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
    const { outliers } = this
    const first = this.candidate(endpoints, start, end, except, false)
    if (first === undefined) return undefined
    const second = this.candidate(endpoints, start, end, except, false)
    if (second === undefined || second === first) return first
    // One that is due for a probe would lose every comparison by its past, and nobody would ever try it again.
    if (!outliers.isInUse(first.key)) return first
    if (!outliers.isInUse(second.key)) return second
    const nowMs = this.clock.monotonicMs()
    const firstCost = costOf(this.load(first.key), first.weight, nowMs)
    const secondCost = costOf(this.load(second.key), second.weight, nowMs)
    return secondCost < firstCost ? second : first
  }

  /**
   * What has been learned of an endpoint, as it is compared; undefined when it was never tried. Changes
   * nothing: it is for explaining, not for picking.
   */
  peek(endpoint: Endpoint): EndpointStanding | undefined {
    const load = this.loads.get(endpoint.key)
    if (load === undefined) return undefined
    const { inFlight, failures } = load
    return {
      inFlight,
      failures,
      cost: costOf(load, endpoint.weight, this.clock.monotonicMs()),
      ejectedFor: this.outliers.reasonOf(endpoint.key),
    }
  }

  /** One of `start` to `end`, from a random place on; `anyway`: ejected or not. */
  private candidate(
    endpoints: readonly Endpoint[],
    start: number,
    end: number,
    except: ReadonlySet<string>,
    anyway: boolean,
  ): Endpoint | undefined {
    const count = end - start
    const at = Math.floor(this.random() * count)
    for (let i = 0; i < count; i += 1) {
      const endpoint = endpoints[start + ((at + i) % count)]
      if (
        endpoint !== undefined &&
        isOffered(endpoint, except) &&
        (anyway || this.isAvailable(endpoint))
      )
        return endpoint
    }
    return undefined
  }

  private isAvailable({ key }: Endpoint): boolean {
    return this.outliers.isInUse(key) || this.outliers.isDueForProbe(key, this.clock.monotonicMs())
  }

  /**
   * Half of the endpoints of one priority may be ejected; all of them when those of a later one can take over, which
   * is what failover is for. At least one of two, never the only one there is.
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

/** Why an endpoint takes no connection, whatever the others are like; undefined when it may. */
export function exclusionOf(endpoint: Endpoint): string | undefined {
  return endpoint.health === 'critical' ? 'its health is critical' : undefined
}

/** Where the priority of the endpoint at `start` ends: the whole list, for most services. */
function endOfGroup(endpoints: readonly Endpoint[], start: number): number {
  const priority = endpoints[start]?.priority
  let low = start
  let high = endpoints.length
  if (endpoints[high - 1]?.priority === priority) return high
  // The one at `low` is of the group, the one at `high` is not.
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
