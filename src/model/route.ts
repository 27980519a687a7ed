/**
 * Which cluster of a service takes what is sent to it. Pure.
 *
 * ```
 *   traffic to a service --first route that matches--> weighted clusters --chance--> cluster
 * ```
 *
 * Bytes that nobody parses cannot be matched or split by request: they go to one cluster, see {@link opaqueClusterOf}.
 */
import type { Cluster } from './cluster.ts'

/** What a route is for, by `kind`. Only what catches everything is known yet. */
export type RouteMatch = { readonly kind: 'any' }

/** A cluster and its share of what a route matches. */
export interface WeightedCluster {
  /** {@link Cluster.name}. */
  readonly cluster: string
  /** Relative to the others of the route; 0 gets nothing while another has more. */
  readonly weight: number
}

/** Plain data. */
export interface Route {
  readonly match: RouteMatch
  readonly clusters: readonly WeightedCluster[]
}

/** How traffic to one service is led. */
export interface Routing {
  /** The first that matches is taken; the last matches everything. */
  readonly routes: readonly Route[]
  /** What the routes lead to. */
  readonly clusters: readonly [Cluster, ...Cluster[]]
}

/** Consul's own default. */
export const DEFAULT_CONNECT_TIMEOUT_MS = 5_000

/** The route of everything to one cluster. */
export function catchAllTo(cluster: string): Route {
  return { match: { kind: 'any' }, clusters: [{ cluster, weight: 1 }] }
}

/** The routing of a service that is led nowhere else: everything goes to one cluster of its name. */
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
 * The name of the cluster that takes bytes which nobody parses: of the last route that matches everything the
 * heaviest one. Undefined when no route leads anywhere.
 */
export function opaqueClusterOf(routes: readonly Route[]): string | undefined {
  const route = routes.findLast(({ match }) => match.kind === 'any')
  return heaviestOf(route?.clusters ?? [])?.cluster
}

/** Of equal ones the first. */
export function heaviestOf<T extends { readonly weight: number }>(
  shares: readonly T[],
): T | undefined {
  let heaviest: T | undefined
  for (const share of shares)
    if (heaviest === undefined || share.weight > heaviest.weight) heaviest = share
  return heaviest
}
