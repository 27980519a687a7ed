/**
 * Parts of the model and of a catalog's answers, everything about them ordinary but for what a test says.
 */
import type { CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import type { Cluster } from '../../src/model/cluster.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import { type Intention, precedenceOf } from '../../src/model/intention.ts'
import { directRouting } from '../../src/model/route.ts'
import type { MeshService } from '../../src/model/snapshot.ts'

/** An instance by its key, `<node>/<service id>`: `b/db-2` is an instance of `db`. */
export function endpoint(key: string, parts: Partial<Endpoint> = {}): Endpoint {
  const [node = key, id = key] = key.split('/')
  return {
    key,
    service: id.replace(/-\d+$/, ''),
    datacenter: 'dc1',
    priority: 0,
    id,
    node,
    tunnel: { ip: '10.0.0.7', port: 15_443 },
    application: { ip: '10.0.0.7', port: 80 },
    health: 'passing',
    weight: 1,
    local: false,
    ...parts,
  }
}

type ClusterParts = Partial<Pick<Cluster, 'connectTimeoutMs' | 'endpoints'>>

/** A service as the data plane has it, at the addresses of its instances; led nowhere else unless clusters are given. */
export function meshService(
  name: string,
  { connectTimeoutMs = 5_000, endpoints = [], ...parts }: Partial<MeshService> & ClusterParts = {},
): MeshService {
  const { datacenter = 'dc1' } = parts
  return {
    name,
    datacenter,
    virtualIps: [],
    protocol: 'tcp',
    ...directRouting(name, { datacenter, connectTimeoutMs, endpoints }),
    addresses: endpoints.flatMap(({ application }) => application ?? []),
    ...parts,
  }
}

/** What a catalog says of a service; without instances unless they are given. */
export function catalogService(
  name: string,
  {
    connectTimeoutMs = 5_000,
    endpoints = [],
    ...parts
  }: Partial<CatalogService> & ClusterParts = {},
): CatalogService {
  return {
    name,
    protocol: 'tcp',
    virtualIps: [],
    ...directRouting(name, { connectTimeoutMs, endpoints }),
    addresses: [],
    ...parts,
  }
}

/** A rule with the precedence that Consul gives it. */
export function intention(
  source: string,
  destination: string,
  action?: Intention['action'],
): Intention {
  return { source, destination, action, precedence: precedenceOf(source, destination) }
}
