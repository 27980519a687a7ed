/**
 * Schemas for the model as JSON read from disk: remembered state and the output of `hostmesh snapshot`. One schema for
 * every reader, checked against the types by the compiler: a missing member does not compile.
 */
import { z } from 'zod'
import type { SocketAddress } from './address.ts'
import type { Cluster } from './cluster.ts'
import type { Endpoint } from './endpoint.ts'
import type { Intention } from './intention.ts'
import type { HeaderMatch, IntentionPermission, PathMatch } from './permission.ts'
import type { Route, RouteMatch, Routing, WeightedCluster } from './route.ts'
import type { Delivery, ExplicitUpstream, LocalService, WorkloadSelector } from './service.ts'
import type { MeshService, ServicePolicy } from './snapshot.ts'

/** A schema for each member of `T`, the optional ones included. */
export type Members<T> = { readonly [K in keyof T]-?: z.ZodType<T[K]> }

/** For optional members: JSON omits members that are undefined. */
function orUndefined<T>(schema: z.ZodType<T>): z.ZodType<T | undefined> {
  return schema.optional()
}

const names = z.array(z.string())
const action = z.enum(['allow', 'deny'])

const addressSchema: z.ZodType<SocketAddress> = z.object({
  ip: z.string(),
  port: z.number(),
} satisfies Members<SocketAddress>)

const endpoint: z.ZodType<Endpoint> = z.object({
  key: z.string(),
  service: z.string(),
  datacenter: z.string(),
  priority: z.number(),
  id: z.string(),
  node: z.string(),
  tunnel: addressSchema,
  application: orUndefined(addressSchema),
  health: z.enum(['passing', 'warning', 'critical']),
  weight: z.number(),
  local: z.boolean(),
} satisfies Members<Endpoint>)

const cluster: z.ZodType<Cluster> = z.object({
  name: z.string(),
  service: z.string(),
  datacenter: z.string(),
  subset: orUndefined(z.string()),
  connectTimeoutMs: z.number(),
  endpoints: z.array(endpoint),
} satisfies Members<Cluster>)

const match: z.ZodType<RouteMatch> = z.object({ kind: z.literal('any') })

const share: z.ZodType<WeightedCluster> = z.object({
  cluster: z.string(),
  weight: z.number(),
} satisfies Members<WeightedCluster>)

const route: z.ZodType<Route> = z.object({
  match,
  clusters: z.array(share),
} satisfies Members<Route>)

/** The members that services of a catalog and of a snapshot share. */
export const routingMembers = {
  routes: z.array(route),
  clusters: z.tuple([cluster], cluster),
} satisfies Members<Routing>

export const meshServiceSchema: z.ZodType<MeshService> = z.object({
  name: z.string(),
  datacenter: z.string(),
  virtualIps: names,
  protocol: z.string(),
  ...routingMembers,
  addresses: z.array(addressSchema),
} satisfies Members<MeshService>)

const path: z.ZodType<PathMatch> = z.object({
  kind: z.enum(['exact', 'prefix', 'regex']),
  value: z.string(),
} satisfies Members<PathMatch>)

const header: z.ZodType<HeaderMatch> = z.object({
  name: z.string(),
  kind: z.enum(['present', 'exact', 'prefix', 'suffix', 'contains', 'regex']),
  value: z.string(),
  invert: z.boolean(),
  ignoreCase: z.boolean(),
} satisfies Members<HeaderMatch>)

const permission: z.ZodType<IntentionPermission> = z.object({
  action,
  path: orUndefined(path),
  methods: names,
  headers: z.array(header),
} satisfies Members<IntentionPermission>)

const intention: z.ZodType<Intention> = z.object({
  source: z.string(),
  destination: z.string(),
  action: orUndefined(action),
  precedence: z.number(),
  permissions: z.exactOptional(z.array(permission)),
  undecidable: z.exactOptional(z.string()),
} satisfies Members<Intention>)

/** The members of a policy of any origin. */
export const policyMembers = {
  destination: z.string(),
  intentions: z.array(intention),
  defaultPolicy: action,
} satisfies Members<ServicePolicy>

export const selectorSchema: z.ZodType<WorkloadSelector> = z.union([
  z.object({ kind: z.literal('cgroup'), path: z.string() }),
  z.object({ kind: z.literal('user'), user: z.string() }),
  z.object({ kind: z.literal('sourceAddress'), ip: z.string() }),
])

const delivery: z.ZodType<Delivery> = z.object({
  from: orUndefined(z.string()),
  proxyHeader: z.boolean(),
} satisfies Members<Delivery>)

const upstream: z.ZodType<ExplicitUpstream> = z.object({
  destination: z.string(),
  bind: orUndefined(addressSchema),
} satisfies Members<ExplicitUpstream>)

export const localServiceSchema: z.ZodType<LocalService> = z.object({
  name: z.string(),
  id: z.string(),
  target: orUndefined(addressSchema),
  delivery: delivery.optional(),
  connectPort: orUndefined(z.number()),
  selector: orUndefined(selectorSchema),
  capturePort: orUndefined(z.number()),
  upstreams: z.array(upstream),
} satisfies Members<LocalService>)
