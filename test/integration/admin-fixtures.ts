/**
 * A scripted admin view and what the admin tests need around it: a directory, a server, raw requests.
 */
import { execFile } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type AdminView, startAdminServer } from '../../src/daemon/admin-server.ts'
import { policiesOf, serviceRoutes } from '../../src/daemon/service-documents.ts'
import { silentLog } from '../../src/lib/log.ts'
import type {
  CertsDocument,
  ConnectionsDocument,
  IntentionsDocument,
  PeersDocument,
  RoutesDocument,
  ServicesDocument,
  StatusDocument,
} from '../../src/model/admin.ts'
import { endpoint, intention, meshService } from '../harness/builders.ts'

const root = fileURLToPath(new URL('../..', import.meta.url))

/** An RFC 3339 text, so many milliseconds from now (negative: ago). */
export function fromNow(ms: number): string {
  return new Date(Date.now() + ms).toISOString()
}

/** A host on which nothing is wrong. */
export const wellStatus: StatusDocument = {
  version: '1.2.3',
  node: 'host-a',
  datacenter: 'dc1',
  pid: 4242,
  startedAt: fromNow(-3 * 3_600_000),
  ready: true,
  serving: true,
  awaited: [],
  draining: false,
  workers: [
    { id: 0, state: 'running', connections: 12, restarts: 0 },
    { id: 1, state: 'running', connections: 7, restarts: 2 },
  ],
  catalog: {
    description: 'consul http://127.0.0.1:8500',
    ageMs: 2_500,
    lastContactMs: 12,
    problems: [],
  },
  certificates: { description: 'files in /etc/hostmesh/certs', problems: [] },
  state: { directory: '/var/lib/hostmesh', parts: [], problems: [] },
  capture: { mode: 'on', inSync: true, problems: [] },
  dns: { address: '127.0.0.1:15053' },
  snapshotVersion: 17,
  problems: [],
}

/** Two services, one of which runs here. */
export const services: ServicesDocument = {
  services: [
    {
      name: 'db',
      datacenter: 'dc1',
      protocol: 'tcp',
      virtualIps: ['240.1.2.3'],
      endpoints: [
        {
          id: 'db-1',
          node: 'host-b',
          address: '10.0.0.7:15443',
          health: 'passing',
          local: false,
          service: 'db',
          datacenter: 'dc1',
          priority: 0,
          ejected: null,
        },
        {
          id: 'db-2',
          node: 'host-c',
          address: '10.0.0.8:15443',
          health: 'critical',
          failingCheck: 'port 5432: connection refused',
          local: false,
          service: 'db',
          datacenter: 'dc1',
          priority: 0,
          ejected: null,
        },
      ],
    },
    { name: 'cache', datacenter: 'dc1', protocol: 'tcp', virtualIps: [], endpoints: [] },
  ],
  local: [
    {
      name: 'web',
      id: 'web-1',
      target: '127.0.0.1:8080',
      identity: 'cgroup system.slice/web.service',
      capturePort: 15_101,
      upstreams: [{ destination: 'db', bind: '127.0.0.1:5432' }],
    },
  ],
}

/** One open tunnel. */
export const peers: PeersDocument = {
  tunnels: [
    {
      source: 'web',
      destination: 'db',
      peerAddress: '10.0.0.7:15443',
      peerSpiffeId: 'spiffe://mesh.example.com/ns/default/dc/dc1/svc/db',
      direction: 'outbound',
      state: 'open',
      streams: 3,
      rttMs: 0.42,
      sentBytes: 1_536,
      receivedBytes: 20 * 1_048_576,
      openedAt: fromNow(-65_000),
    },
  ],
}

/** One open connection, and more that are not listed. */
export const connections: ConnectionsDocument = {
  connections: [
    {
      id: '0-17',
      direction: 'outbound',
      source: 'web',
      destination: 'db',
      downstreamAddress: '127.0.0.1:40112',
      originalDestination: '240.1.2.3:5432',
      endpoint: '10.0.0.7:15443',
      openedAt: fromNow(-5_000),
      sentBytes: 100,
      receivedBytes: 2_048,
      state: 'open',
      peerAddress: '10.0.0.7:15443',
    },
  ],
  omitted: 3,
}

/** A certificate that is fresh and one that should have been renewed. */
export const certs: CertsDocument = {
  trustDomain: 'mesh.example.com',
  roots: [
    {
      fingerprint: Array.from({ length: 32 }, () => 'AB').join(':'),
      notAfter: fromNow(86_400_000 * 300),
    },
  ],
  leaves: [
    {
      service: 'web',
      spiffeId: 'spiffe://mesh.example.com/ns/default/dc/dc1/svc/web',
      serialNumber: '0A0B0C',
      notBefore: fromNow(-3_600_000),
      notAfter: fromNow(71 * 3_600_000),
    },
    {
      service: 'old',
      spiffeId: 'spiffe://mesh.example.com/ns/default/dc/dc1/svc/old',
      serialNumber: '0D',
      notBefore: fromNow(-100 * 3_600_000),
      notAfter: fromNow(-3_600_000),
    },
  ],
}

/** A service with a rule that is enforced and one that is not, and a service without loaded rules. */
const intentions: IntentionsDocument = {
  destinations: policiesOf(
    [
      { name: 'web', target: { ip: '127.0.0.1', port: 8_080 } },
      { name: 'new', target: { ip: '127.0.0.1', port: 8_081 } },
      { name: 'batch', target: undefined },
    ],
    {
      policies: new Map([
        [
          'web',
          {
            destination: 'web',
            defaultPolicy: 'deny',
            intentions: [
              intention('ingress', 'web', 'allow'),
              { ...intention('legacy', 'web', 'allow'), undecidable: 'has JWT requirements' },
              intention('*', '*', 'deny'),
            ],
          },
        ],
      ]),
    },
  ),
}

/** A service with a split and a failover. */
const routes: RoutesDocument = {
  services: [
    serviceRoutes(
      meshService('db', {
        routes: [
          {
            match: { kind: 'any' },
            clusters: [
              { cluster: 'db:v2', weight: 90 },
              { cluster: 'db:v1', weight: 10 },
            ],
          },
        ],
        clusters: [
          {
            name: 'db:v2',
            service: 'db',
            datacenter: 'dc1',
            subset: 'v2',
            connectTimeoutMs: 5_000,
            endpoints: [
              endpoint('host-b/db-2'),
              endpoint('host-x/db-9', { datacenter: 'dc2', priority: 1 }),
            ],
          },
          {
            name: 'db:v1',
            service: 'db',
            datacenter: 'dc1',
            subset: 'v1',
            connectTimeoutMs: 5_000,
            endpoints: [endpoint('host-c/db-1', { health: 'critical' })],
          },
        ],
      }),
      { ejections: new Map(), failing: new Map() },
    ),
  ],
}

/** The view of a well host, with parts replaced. */
export function scriptedView(parts: Partial<AdminView> = {}): AdminView {
  return {
    status: () => Promise.resolve(wellStatus),
    services: () => Promise.resolve(services),
    peers: () => Promise.resolve(peers),
    connections: () => Promise.resolve(connections),
    certs: () => Promise.resolve(certs),
    intentions: () => Promise.resolve(intentions),
    routes: () => Promise.resolve(routes),
    refused: () => Promise.resolve({ refused: [] }),
    snapshot: () => Promise.reject(new Error('this view has no snapshot')),
    explain: () => Promise.reject(new Error('this view explains nothing')),
    metrics: () => Promise.resolve('# HELP a A\n# TYPE a gauge\na 1\n'),
    ...parts,
  }
}

/** A directory of the test's own, removed with all that is in it. */
export async function temporaryDirectory(): Promise<{ path: string } & AsyncDisposable> {
  const path = await mkdtemp(join(tmpdir(), 'hostmesh-admin-'))
  return {
    path,
    [Symbol.asyncDispose]: () => rm(path, { recursive: true, force: true }),
  }
}

/** A running admin server in a directory of its own. */
export async function startScripted(
  view: AdminView,
  deadlinesMs?: { view: number; reader: number },
): Promise<{ socketPath: string; directory: string } & AsyncDisposable> {
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory())
  const socketPath = join(directory.path, 'admin.sock')
  stack.use(await startAdminServer({ socketPath, view, log: silentLog, deadlinesMs }))
  const owned = stack.move()
  return {
    socketPath,
    directory: directory.path,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}

/** What came back for one request. */
export interface HttpAnswer {
  readonly status: number
  readonly headers: Readonly<Record<string, string | string[] | undefined>>
  readonly body: string
}

/** One request over a unix socket. */
export function ask(
  socketPath: string,
  path: string,
  options: { method?: string; body?: string } = {},
): Promise<HttpAnswer> {
  return new Promise((resolve, reject) => {
    const outgoing = request(
      { socketPath, path, method: options.method ?? 'GET', agent: false },
      (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('end', () =>
          resolve({
            status: response.statusCode ?? 0,
            headers: response.headers,
            body: Buffer.concat(chunks).toString(),
          }),
        )
        response.on('error', reject)
      },
    )
    outgoing.on('error', reject)
    outgoing.end(options.body)
  })
}

/** What a run of the executable left behind. */
export interface CommandRun {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs the real executable, as a user would, and waits for its end. */
export function hostmesh(
  args: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<CommandRun> {
  return new Promise((resolve) => {
    execFile(
      join(root, 'scripts/hostmesh'),
      args,
      // A pipe is no terminal, whatever the terminal of the test run says about color.
      { env: { PATH: process.env['PATH'] ?? '', ...environment }, timeout: 60_000 },
      (error, stdout, stderr) => {
        const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
        resolve({ code, stdout, stderr })
      },
    )
  })
}
