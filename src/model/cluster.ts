/**
 * The instances that traffic to a service goes to, and the instances that replace them on failover.
 */
import type { Endpoint } from './endpoint.ts'

/** Plain data. Routes refer to clusters; the balancer picks an endpoint of one. */
export interface Cluster {
  /** Its name in routes, unique within its service: `db`, `db:v2` for a subset, `dc2/db` in another datacenter. */
  readonly name: string
  /** The service of its instances; differs from the called service after a redirect. */
  readonly service: string
  /** Empty in a catalog that has only one datacenter: compile() fills it in. */
  readonly datacenter: string
  /** The catalog's name for a subset of the instances; undefined means all of them. */
  readonly subset: string | undefined
  readonly connectTimeoutMs: number
  /** In order of priority: its own instances first, then those of its failover targets, of whatever service. */
  readonly endpoints: readonly Endpoint[]
}
