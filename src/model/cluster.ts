/**
 * Where traffic to a service goes: instances that are as good as each other, and those that take over for them.
 */
import type { Endpoint } from './endpoint.ts'

/** Plain data. Routes lead to clusters; the balancer picks an endpoint of one. */
export interface Cluster {
  /** What routes call it, unique within its service: `db`, `db:v2` for a subset, `dc2/db` in another datacenter. */
  readonly name: string
  /** The service whose instances it is made of; another than was asked for after a redirect. */
  readonly service: string
  /** Empty in a catalog that knows only one: compile() fills it in. */
  readonly datacenter: string
  /** The catalog's name for a part of the instances; undefined means all of them. */
  readonly subset: string | undefined
  readonly connectTimeoutMs: number
  /** In the order of their priority: after its own instances those of what it fails over to, whatever they are of. */
  readonly endpoints: readonly Endpoint[]
}
