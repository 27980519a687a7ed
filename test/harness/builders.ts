/**
 * Parts of the model and of a catalog's answers, everything about them ordinary but for what a test says.
 */
import type { CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import { type Intention, precedenceOf } from '../../src/model/intention.ts'
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

/** A service as the data plane has it, at the addresses of its instances. */
export function meshService(name: string, parts: Partial<MeshService> = {}): MeshService {
  return {
    name,
    datacenter: 'dc1',
    virtualIps: [],
    protocol: 'tcp',
    connectTimeoutMs: 5_000,
    endpoints: [],
    addresses: parts.endpoints?.flatMap(({ application }) => application ?? []) ?? [],
    ...parts,
  }
}

/** What a catalog says of a service; without instances unless they are given. */
export function catalogService(name: string, parts: Partial<CatalogService> = {}): CatalogService {
  return {
    name,
    protocol: 'tcp',
    connectTimeoutMs: 5_000,
    virtualIps: [],
    endpoints: [],
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
