/**
 * The facts of a host on which everything is well: `web` and `cache` here, `db` and `vault` elsewhere.
 */
import type { Endpoint } from '../../src/model/endpoint.ts'
import { FACTS_FORMAT, FACTS_VERSION, type HostFacts } from '../../src/model/facts.ts'
import type { LocalService } from '../../src/model/service.ts'
import type { MeshService } from '../../src/model/snapshot.ts'
import { endpoint as built, intention, meshService } from '../harness/builders.ts'

export const NOW = '2026-03-01T12:00:00.000Z'

export function endpoint(name: string, number: number, parts: Partial<Endpoint> = {}): Endpoint {
  const ip = `10.0.0.${number}`
  return built(`host-${number}/${name}-${number}`, {
    tunnel: { ip, port: 15_443 },
    application: { ip, port: 5432 },
    ...parts,
  })
}

export function service(name: string, number: number, endpoints: readonly Endpoint[]): MeshService {
  return meshService(name, { virtualIps: [`240.0.0.${number}`], endpoints })
}

export function local(name: string, parts: Partial<LocalService> = {}): LocalService {
  return {
    name,
    id: name,
    target: undefined,
    connectPort: undefined,
    selector: undefined,
    capturePort: undefined,
    upstreams: [],
    ...parts,
  }
}

export function policy(
  destination: string,
  origin: 'snapshot' | 'catalog',
  rules: readonly (readonly [string, string, 'allow' | 'deny' | undefined])[],
): HostFacts['policies'][number] {
  return {
    destination,
    origin,
    defaultPolicy: 'deny',
    intentions: rules
      .map(([source, to, action]) => intention(source, to, action))
      .toSorted((left, right) => right.precedence - left.precedence),
  }
}

export function facts(parts: Partial<HostFacts> = {}): HostFacts {
  return {
    format: FACTS_FORMAT,
    formatVersion: FACTS_VERSION,
    writtenAt: NOW,
    version: '1.2.3',
    node: 'host-1',
    datacenter: 'dc1',
    addresses: ['127.0.0.1', '10.0.0.1'],
    networks: ['10.0.0.1/24', '172.17.0.1/16'],
    ready: true,
    awaited: [],
    draining: false,
    catalog: {
      description: 'consul http://127.0.0.1:8500',
      ageMs: 2_000,
      lastContactMs: 12,
      problems: [],
    },
    snapshotVersion: 7,
    services: [
      service('db', 1, [endpoint('db', 2), endpoint('db', 3, { health: 'critical' })]),
      service('vault', 2, [endpoint('vault', 2)]),
      service('cache', 3, [
        endpoint('cache', 1, { local: true, application: { ip: '10.0.0.1', port: 6379 } }),
      ]),
      service('gone', 4, []),
    ],
    policies: [
      policy('cache', 'snapshot', [['web', 'cache', 'allow']]),
      policy('db', 'catalog', [
        ['web', 'db', 'allow'],
        ['*', 'db', 'deny'],
      ]),
      policy('vault', 'catalog', [['web', 'vault', 'deny']]),
    ],
    local: [
      local('web', {
        selector: { kind: 'cgroup', path: 'system.slice/web.service' },
        capturePort: 15_100,
        upstreams: [{ destination: 'vault', bind: { ip: '127.0.0.1', port: 9002 } }],
      }),
      local('tool', { upstreams: [{ destination: 'db', bind: { ip: '127.0.0.1', port: 9001 } }] }),
      local('cache', { id: 'cache-1', target: { ip: '127.0.0.1', port: 6379 } }),
    ],
    domains: ['mesh', 'virtual.consul'],
    capture: {
      mode: 'on',
      inSync: true,
      problems: [],
      backend: 'nftables',
      plan: {
        workloads: [
          { selector: { kind: 'cgroup', path: 'system.slice/web.service' }, capturePort: 15_100 },
        ],
        virtualRange: '240.0.0.0/4',
        virtualRange6: 'fdc6:6d65:7368::/64',
        daemonUid: 0,
        ownPorts: [15_100, 15_443],
      },
    },
    certificates: {
      trustDomain: 'mesh.example',
      roots: [{ fingerprint: 'AB:CD', notAfter: '2030-01-01T00:00:00.000Z' }],
      leaves: ['web', 'tool', 'cache'].map((name) => ({
        service: name,
        spiffeId: `spiffe://mesh.example/ns/default/dc/dc1/svc/${name}`,
        serialNumber: '0A',
        notBefore: '2026-02-28T12:00:00.000Z',
        notAfter: '2026-03-02T12:00:00.000Z',
      })),
      revokedSerials: [],
      problems: [],
    },
    tunnels: [
      {
        source: 'web',
        destination: 'db',
        peerAddress: '10.0.0.2:15443',
        peerSpiffeId: 'spiffe://mesh.example/ns/default/dc/dc1/svc/db',
        direction: 'outbound',
        state: 'open',
        streams: 3,
        rttMs: 0.4,
        sentBytes: 10,
        receivedBytes: 20,
        openedAt: '2026-03-01T11:59:00.000Z',
      },
    ],
    loads: [
      {
        worker: 0,
        endpoint: 'host-2/db-2',
        inFlight: 2,
        cost: 4.5,
        failures: 0,
        ejectionReason: null,
      },
      {
        worker: 1,
        endpoint: 'host-2/db-2',
        inFlight: 1,
        cost: 3.25,
        failures: 0,
        ejectionReason: null,
      },
    ],
    problems: [],
    outcomes: [],
    listeners: [],
    probes: [],
    ...parts,
  }
}
