/**
 * Which endpoint takes the next connection: power of two choices over {@link costOf}. Synchronous, no I/O;
 * chance and time are passed in.
 *
 * Critical endpoints are left out, warning ones stay (as Consul's DNS and Envoy have it). When all are
 * critical nobody is picked: a reset at once tells the caller more than a dead instance does.
 */
import type { Clock, Random } from '../../lib/clock.ts'
import type { Endpoint } from '../../model/endpoint.ts'
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
}

/** Picks endpoints and learns from what comes of it. One per worker. */
export class Balancer {
  private readonly loads = new Map<string, EndpointLoad>()
  private readonly clock: Clock
  private readonly random: Random

  constructor(clock: Clock, random: Random) {
    this.clock = clock
    this.random = random
  }

  /** An endpoint that is not critical and not in `except`; undefined when there is none. */
  pick(endpoints: readonly Endpoint[], except: ReadonlySet<string>): Endpoint | undefined {
    const count = endpoints.length
    if (count === 0) return undefined
    if (count === 1) {
      const only = endpoints[0]
      return only !== undefined && isCandidate(only, except) ? only : undefined
    }
    const first = this.candidate(endpoints, except, Math.floor(this.random() * count))
    if (first === undefined) return undefined
    const second = this.candidate(endpoints, except, Math.floor(this.random() * count))
    if (second === undefined || second === first) return first
    const nowMs = this.clock.monotonicMs()
    const firstCost = costOf(this.load(first.key), first.weight, nowMs)
    const secondCost = costOf(this.load(second.key), second.weight, nowMs)
    return secondCost < firstCost ? second : first
  }

  /** A try begins. */
  started(endpoint: Endpoint): void {
    this.load(endpoint.key).inFlight += 1
  }

  /** The try reached the application. It stays in flight until {@link finished}. */
  succeeded(endpoint: Endpoint, tookMs: number): void {
    observeSuccess(this.load(endpoint.key), tookMs, this.clock.monotonicMs())
  }

  /** The try did not reach the application. */
  failed(endpoint: Endpoint): void {
    observeFailure(this.load(endpoint.key), this.clock.monotonicMs())
  }

  /** The connection, or the try, is over. */
  finished(endpoint: Endpoint): void {
    const load = this.load(endpoint.key)
    load.inFlight = Math.max(0, load.inFlight - 1)
  }

  /**
   * What has been learned of an endpoint, as it is compared; undefined when it was never tried. Changes
   * nothing: it is for explaining, not for picking.
   */
  peek(endpoint: Endpoint): EndpointStanding | undefined {
    const load = this.loads.get(endpoint.key)
    if (load === undefined) return undefined
    const { inFlight, failures } = load
    return { inFlight, failures, cost: costOf(load, endpoint.weight, this.clock.monotonicMs()) }
  }

  private candidate(
    endpoints: readonly Endpoint[],
    except: ReadonlySet<string>,
    start: number,
  ): Endpoint | undefined {
    for (let i = 0; i < endpoints.length; i += 1) {
      const endpoint = endpoints[(start + i) % endpoints.length]
      if (endpoint !== undefined && isCandidate(endpoint, except)) return endpoint
    }
    return undefined
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

function isCandidate(endpoint: Endpoint, except: ReadonlySet<string>): boolean {
  return exclusionOf(endpoint) === undefined && !except.has(endpoint.key)
}
