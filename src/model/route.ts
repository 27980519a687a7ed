/**
 * Which cluster receives the traffic to a service. Pure.
 *
 * ```
 *   traffic to a service --first route that matches--> weighted clusters --chance--> cluster
 * ```
 *
 * Opaque bytes cannot be matched or split by request: they go to one cluster, see {@link opaqueClusterOf}.
 */
import type { Cluster } from './cluster.ts'

/** The traffic that a route matches, by `kind`. So far only `any`, which matches everything. */
export type RouteMatch = { readonly kind: 'any' }

/** A cluster and its share of the traffic of a route. */
export interface WeightedCluster {
  /** {@link Cluster.name}. */
  readonly cluster: string
  /** Relative to the other clusters of the route; 0 receives nothing while another one has more. */
  readonly weight: number
}

/** Plain data. */
export interface Route {
  readonly match: RouteMatch
  readonly clusters: readonly WeightedCluster[]
}

/** The routes and clusters of one service. */
export interface Routing {
  /** The first match is used; the last route matches everything. */
  readonly routes: readonly Route[]
  /** The clusters that the routes refer to. */
  readonly clusters: readonly [Cluster, ...Cluster[]]
}

/** Consul's own default. */
export const DEFAULT_CONNECT_TIMEOUT_MS = 5_000

/** A route of all traffic to one cluster. */
export function catchAllTo(cluster: string): Route {
  return { match: { kind: 'any' }, clusters: [{ cluster, weight: 1 }] }
}

/** The routing of a service without redirects or splits: everything goes to one cluster of its name. */
export function directRouting(
  service: string,
  cluster: Partial<Pick<Cluster, 'datacenter' | 'connectTimeoutMs' | 'endpoints'>> = {},
): Routing {
  const usual = { datacenter: '', connectTimeoutMs: DEFAULT_CONNECT_TIMEOUT_MS, endpoints: [] }
  return {
    routes: [catchAllTo(service)],
    clusters: [{ name: service, service, subset: undefined, ...usual, ...cluster }],
  }
}

/**
 * The name of the cluster for opaque bytes: the heaviest one of the last route that matches everything. Undefined when
 * there is no such route, or it has no clusters.
 */
export function opaqueClusterOf(routes: readonly Route[]): string | undefined {
  const route = routes.findLast(({ match }) => match.kind === 'any')
  return heaviestOf(route?.clusters ?? [])?.cluster
}

/** The share with the highest weight; the first of equal ones. */
export function heaviestOf<T extends { readonly weight: number }>(
  shares: readonly T[],
): T | undefined {
  let heaviest: T | undefined
  for (const share of shares)
    if (heaviest === undefined || share.weight > heaviest.weight) heaviest = share
  return heaviest
}
