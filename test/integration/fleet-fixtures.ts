/**
 * Documents of a small fleet, and a server that answers with them as an aggregator does.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import { join } from 'node:path'
import { closeServer, portOf } from '../../src/lib/json-http.ts'
import type {
  Coverage,
  FleetDocuments,
  GraphEdge,
  HostEntry,
  ServiceSummary,
  Traffic,
} from '../../src/model/fleet.ts'
import { temporaryDirectory } from './admin-fixtures.ts'

const coverage: Coverage = {
  at: '2027-01-31T12:00:00.000Z',
  windowMs: 60_000,
  live: true,
  hosts: 3,
  reporting: 2,
  notes: ['host-c has not reported for 2m'],
}

/** Traffic of which nothing is wrong. */
export const calm: Traffic = {
  openedPerSecond: 12.34,
  active: 7,
  closed: { '-': 740 },
  errorShare: 0,
  connectFailures: 0,
  sentBytesPerSecond: 2_048,
  receivedBytesPerSecond: 1_048_576,
  connectMs: { p50: 0.4, p90: 0.9, p99: 2.1 },
  firstByteMs: null,
  durationMs: { p50: 80, p90: 200, p99: 900 },
}

/** An edge that a rule allows, unless said otherwise. */
export function edge(
  source: string,
  destination: string,
  parts: Partial<GraphEdge> = {},
): GraphEdge {
  const rule = { source, destination, action: 'allow', precedence: 9 } as const
  const reason = `intention ${source} -> ${destination} (precedence 9) says allow`
  return {
    source,
    destination,
    traffic: calm,
    reporter: 'destination',
    policy: { allow: true, rule, reason },
    ...parts,
  }
}

const denied: GraphEdge = edge('batch', 'db', {
  traffic: { ...calm, openedPerSecond: 0.5, active: 0, closed: { DENY: 30 }, errorShare: null },
  policy: {
    allow: false,
    rule: null,
    reason: 'no intention matches, the default policy says deny',
  },
})
const failing: GraphEdge = edge('web', 'cache', {
  traffic: { ...calm, openedPerSecond: 3, closed: { '-': 90, UF: 10 }, errorShare: 0.1 },
})
const edges = [edge('web', 'db'), denied, failing]

function host(name: string, parts: Partial<HostEntry> = {}): HostEntry {
  return {
    name,
    state: 'ready',
    lastReportAt: new Date().toISOString(),
    lateMs: 100,
    lostRecords: 0,
    version: '1.2.3',
    datacenter: 'dc1',
    zone: null,
    services: ['web'],
    problems: [],
    clockOffsetMs: 3,
    cpu: 0.02,
    memoryBytes: 80 * 1_048_576,
    ...parts,
  }
}

const hosts = [
  host('host-a'),
  host('host-b', {
    state: 'degraded',
    services: ['db', 'cache'],
    problems: [{ code: 'HM_CAPTURE_RULES_LOST', message: 'Rules are gone', blocks: true }],
  }),
  host('host-c', { state: 'silent', lateMs: 120_000, version: '1.1.0', services: [] }),
]

function summary(name: string, on: readonly string[]): ServiceSummary {
  return {
    name,
    protocol: 'tcp',
    instances: on.length,
    hosts: on,
    health: name === 'cache' ? 'failing' : 'healthy',
    reasons: name === 'cache' ? ['1 of 10 connections fails'] : [],
    inbound: calm,
    callers: 2,
    destinations: 0,
  }
}

const db = summary('db', ['host-b'])

/** The documents. */
export const fleet: FleetDocuments = {
  overview: {
    coverage,
    version: '1.2.3',
    hosts: { total: 3, ready: 1, degraded: 1, starting: 0, draining: 0, silent: 1, conflicting: 0 },
    services: 4,
    pairs: 3,
    traffic: calm,
    problems: [{ code: 'HM_CAPTURE_RULES_LOST', hosts: 1 }],
    store: {
      bytes: 1_048_576,
      maxBytes: 1_073_741_824,
      oldest: { seconds: coverage.at, minutes: null, hours: null },
    },
  },
  graph: {
    coverage,
    group: 'service',
    nodes: ['web', 'db', 'cache', 'batch'].map((id) => ({
      id,
      health: 'healthy',
      instances: 1,
      hosts: [],
      reasons: [],
    })),
    edges,
    omitted: 0,
  },
  services: { coverage, services: [summary('web', ['host-a']), db, summary('cache', ['host-b'])] },
  service: {
    coverage,
    service: db,
    instances: [
      {
        host: 'host-b',
        id: 'db-1',
        target: '10.0.0.2:5432',
        captured: true,
        health: 'passing',
        certificateNotAfter: '2027-02-01T00:00:00Z',
        hostState: 'degraded',
        resources: null,
      },
    ],
    callers: [edge('web', 'db'), denied],
    destinations: [],
    policy: {
      defaultAction: 'deny',
      intentions: [{ source: 'web', destination: 'db', action: 'allow', precedence: 9, used: 740 }],
    },
  },
  hosts: { coverage, hosts },
  host: {
    coverage,
    host: hosts[1]!,
    startedAt: coverage.at,
    nodeVersion: 'v24.21.0',
    workers: 2,
    capture: { mode: 'on', backend: 'nftables', inSync: false, plainInbound: 0 },
    tunnels: { sessions: 4, peers: 2 },
    services: [],
    workloads: [
      {
        service: 'db',
        cpu: 0.25,
        memoryBytes: 1_048_576,
        tasks: 9,
        sockets: null,
        cpuPressure: 0.1,
        memoryPressure: 0,
        ioPressure: null,
      },
    ],
    edges: [edge('web', 'db')],
    counters: {},
  },
  history: {
    coverage,
    stepMs: 10_000,
    at: [],
    missing: [],
    series: {
      openedPerSecond: [],
      errorsPerSecond: [],
      deniedPerSecond: [],
      active: [],
      sentBytesPerSecond: [],
      receivedBytesPerSecond: [],
      connectP50Ms: [],
      connectP99Ms: [],
      firstByteP50Ms: [],
      firstByteP99Ms: [],
    },
  },
  risks: {
    coverage,
    risks: [
      {
        kind: 'oldVersion',
        severity: 'low',
        subject: 'host-c',
        message: 'host-c runs 1.1.0',
        hint: 'Upgrade it',
      },
      {
        kind: 'singleInstance',
        severity: 'high',
        subject: 'db',
        message: 'db has one instance',
        hint: 'Run another one',
      },
    ],
  },
  versions: {
    coverage,
    versions: [
      { version: '1.2.3', hosts: ['host-a', 'host-b'] },
      { version: '1.1.0', hosts: ['host-c'] },
    ],
    mixedPairs: [{ source: 'web', destination: 'batch', versions: ['1.1.0', '1.2.3'] }],
  },
}

/** An aggregator as far as the command line sees it. */
export interface FakeAggregator extends AsyncDisposable {
  /** Its unix socket. */
  readonly socketPath: string
  /** Its loopback address. */
  readonly url: string
  readonly directory: string
  /** What was asked for, in order. */
  readonly asked: readonly IncomingMessage[]
}

/** Answers a request; false leaves it to the documents. */
export type Answering = (request: IncomingMessage, response: ServerResponse) => boolean

/** Starts one. With `tls` the URL is https. */
export async function startAggregator(
  options: {
    readonly documents?: Partial<FleetDocuments>
    readonly answer?: Answering
    readonly tls?: { readonly cert: string; readonly key: string }
  } = {},
): Promise<FakeAggregator> {
  const { documents = {}, answer = () => false, tls } = options
  await using stack = new AsyncDisposableStack()
  const directory = stack.use(await temporaryDirectory())
  const asked: IncomingMessage[] = []
  const serve = (request: IncomingMessage, response: ServerResponse): void => {
    asked.push(request)
    if (answer(request, response)) return
    const name = /^\/api\/v1\/(\w+)/.exec(request.url ?? '')?.[1] ?? ''
    const document = Object.entries({ ...fleet, ...documents }).find(([key]) => key === name)?.[1]
    response.writeHead(document === undefined ? 404 : 200, { 'content-type': 'application/json' })
    response.end(JSON.stringify(document ?? { error: { code: 'HM_X', message: 'no such path' } }))
  }
  const socketPath = join(directory.path, 'api.sock')
  const local = createServer(serve)
  const remote = tls === undefined ? createServer(serve) : createTlsServer(tls, serve)
  await new Promise<void>((resolve) => local.listen(socketPath, resolve))
  stack.defer(() => closeServer(local))
  await new Promise<void>((resolve) => remote.listen(0, '127.0.0.1', resolve))
  stack.defer(() => closeServer(remote))
  const owned = stack.move()
  return {
    socketPath,
    url: `${tls === undefined ? 'http' : 'https'}://127.0.0.1:${portOf(remote)}`,
    directory: directory.path,
    asked,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
