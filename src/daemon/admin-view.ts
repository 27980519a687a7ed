/**
 * The documents of the admin API, made from the daemon's parts at the moment they are asked for.
 */
import { X509Certificate } from 'node:crypto'
import type { CaptureCondition } from '../controlplane/capture/capture.ts'
import type { CapturePlan } from '../controlplane/capture/rules.ts'
import type { Catalog } from '../controlplane/catalog/catalog.ts'
import type { Discovery } from '../controlplane/discovery/publisher.ts'
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import { MeshError } from '../lib/errors.ts'
import { formatAddress, type SocketAddress } from '../model/address.ts'
import type {
  CertsDocument,
  ConnectionEntry,
  EjectionEntry,
  LocalServiceEntry,
  PeersDocument,
  ProblemEntry,
  RefusedEntry,
  ReloadStatus,
  ServiceEntry,
  StateStatus,
  StatusDocument,
  TunnelEntry,
} from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { HostFacts } from '../model/facts.ts'
import type { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import type { MeshService } from '../model/snapshot.ts'
import type { Exposition } from '../telemetry/exposition.ts'
import type { WorkerTotals } from '../telemetry/totals.ts'
import type { AdminView } from './admin-server.ts'
import { withoutProbe } from './explain/answer.ts'
import { explain, type Question } from './explain/explain.ts'
import { serviceAskedFor } from './explain/route.ts'
import { selectorText } from './explain/words.ts'
import { collectFacts, type FactScope } from './facts.ts'
import type { WorkerConnections, WorkerPool } from './worker-pool.ts'

type Refused = Awaited<ReturnType<WorkerPool['refusals']>>[number]

/** The daemon as the view sees it: read-only, and parts may not be there yet. */
export interface DaemonState {
  readonly version: string
  readonly datacenter: string
  readonly startedAtMs: number
  readonly captureMode: 'off' | 'on'
  readonly services: readonly LocalService[]
  readonly totals: WorkerTotals
  readonly pool: WorkerPool
  node(): string
  leaves(): readonly Leaf[]
  bundle(): TrustBundle | undefined
  catalog(): Catalog | undefined
  certificates(): CertificateSource | undefined
  discovery(): Discovery | undefined
  /** Where the resolver listens; undefined while it is off. */
  dnsAddress(): SocketAddress | undefined
  capture(): {
    /** As the upkeep has last seen it; undefined while capture is off. */
    readonly condition: CaptureCondition | undefined
    readonly problems: readonly Problem[]
    readonly plan: CapturePlan | undefined
  }
  state(): StateStatus
  awaited(): readonly string[]
  /** The one list of what is wrong. */
  problems(): readonly ProblemEntry[]
  isDraining(): boolean
  reload(): ReloadStatus
}

/** Instances that one question probes, and questions that do so at once. */
const MAX_PROBED = 16
const MAX_PROBING = 4

/** Connections in one document; the rest is counted. */
const MAX_CONNECTIONS = 10_000

const connectionStates = {
  opening: 'connecting',
  open: 'open',
  'half-closed': 'halfClosed',
} as const

/** The admin API's view of a daemon. */
export function createAdminView(state: DaemonState, exposition: Exposition): AdminView {
  const certs = (): CertsDocument => certsOf(state)
  let probing = 0
  const peers = async (): Promise<PeersDocument> => ({
    tunnels: (await state.pool.peers()).map(tunnelEntry),
  })
  const facts = async (scope: FactScope): Promise<HostFacts> => {
    const [{ countByWorker }, { tunnels }] = await Promise.all([state.pool.connections(0), peers()])
    const sources = { status: statusOf(state, countByWorker), certs: certs(), tunnels }
    return collectFacts(state, sources, scope)
  }
  return {
    status: async () => statusOf(state, (await state.pool.connections(0)).countByWorker),
    services: async () => {
      const ejections = ejectionsByKey(await state.pool.ejections())
      const failing = state.catalog()?.failingChecks?.() ?? new Map<string, string>()
      const services = [...(state.discovery()?.current().services.values() ?? [])]
      return {
        services: services.map((service) => serviceEntry(service, ejections, failing)),
        local: state.services.map(localEntry),
      }
    },
    peers,
    connections: async () => {
      const { connections, countByWorker } = await state.pool.connections(MAX_CONNECTIONS)
      const listed = connections.slice(0, MAX_CONNECTIONS).map(connectionEntry)
      const total = countByWorker.reduce((sum, count) => sum + count, 0)
      return { connections: listed, omitted: Math.max(0, total - listed.length) }
    },
    refused: async () => ({ refused: (await state.pool.refusals()).map(refusedEntry) }),
    snapshot: () => facts('all'),
    explain: async (query) => {
      const { question, isProbed } = await questionOf(state, query)
      const { from, to } = pairOf(question)
      const source = isProbed ? proberOf(state, from) : from
      const bare = await facts({ service: undefined })
      const service = serviceAskedFor(bare, from, to, (ip, port) =>
        state.discovery()?.ownerOf(ip, port),
      )
      const road = explain(service === undefined ? bare : await facts({ service }), question)
      const endpoints = road.endpoints.flatMap(({ endpoint, excluded }) =>
        excluded === null ? [endpoint] : [],
      )
      if (!isProbed) return road
      if (road.service === null || endpoints.length === 0) return withoutProbe(road)
      if (probing >= MAX_PROBING)
        throw new MeshError('HM_ADMIN_BUSY', `Cannot probe now: ${probing} others are under way`)
      probing += 1
      try {
        const probe = { source, service: road.service, endpoints: endpoints.slice(0, MAX_PROBED) }
        return explain(await facts({ service, probe }), question)
      } finally {
        probing -= 1
      }
    },
    certs: async () => certs(),
    metrics: () => exposition.metrics(),
  }
}

/** What a query of `/v1/explain` asks. */
async function questionOf(
  state: DaemonState,
  query: string,
): Promise<{ readonly question: Question; readonly isProbed: boolean }> {
  const words = new URLSearchParams(query)
  const isProbed = words.get('probe') === '1'
  const question = await pairOrConnection(state, words)
  if (isProbed && question.kind === 'connection')
    throw new MeshError('HM_USAGE_QUESTION', 'Cannot probe for a connection: ask for from and to')
  return { question, isProbed }
}

/** The local service in whose name is probed: it needs its certificate. */
function proberOf(state: DaemonState, from: string): string {
  const caller = state.services.find(({ name, id }) => name === from || id === from)
  if (caller !== undefined) return caller.name
  throw new MeshError(
    'HM_USAGE_QUESTION',
    `Cannot probe as ${from}: it is no service of this host`,
    {
      hint: `Probe on the host that runs ${from}`,
    },
  )
}

async function pairOrConnection(state: DaemonState, words: URLSearchParams): Promise<Question> {
  const [from, to, id] = [words.get('from'), words.get('to'), words.get('connection')]
  if (id === null && from !== null && to !== null) return { kind: 'pair', from, to }
  if (id === null || from !== null || to !== null)
    throw new MeshError(
      'HM_USAGE_QUESTION',
      'Cannot explain: ask for from and to, or for a connection',
    )
  const open = await state.pool.connection(id)
  if (open !== undefined) return { kind: 'connection', connection: connectionEntry(open) }
  const refused = (await state.pool.refusals()).find((each) => each.id === id)
  if (refused !== undefined) return { kind: 'connection', connection: refusedEntry(refused) }
  throw new MeshError(
    'HM_CONNECTION_NOT_FOUND',
    `Cannot explain connection ${id}: it is not open, and not among the last that were refused`,
    { hint: 'hostmesh connections lists the open ones, hostmesh connections --refused the others' },
  )
}

function pairOf(question: Question): { readonly from: string; readonly to: string } {
  if (question.kind === 'pair') return question
  const { source, destination } = question.connection
  return { from: source, to: destination }
}

function certsOf(state: DaemonState): CertsDocument {
  return {
    trustDomain: state.bundle()?.trustDomain ?? null,
    roots: (state.bundle()?.rootsPem ?? []).map((pem) => {
      const certificate = new X509Certificate(pem)
      return {
        fingerprint: certificate.fingerprint256,
        notAfter: certificate.validToDate.toISOString(),
      }
    }),
    leaves: state.leaves().map((leaf) => ({
      service: leaf.service,
      spiffeId: leaf.spiffeId,
      serialNumber: leaf.serialNumber,
      notBefore: timeText(leaf.notBeforeMs),
      notAfter: timeText(leaf.notAfterMs),
    })),
  }
}

function statusOf(state: DaemonState, countByWorker: readonly number[]): StatusDocument {
  const awaited = state.awaited()
  const catalog = state.catalog()
  const health = catalog?.health()
  const capture = state.capture()
  const dnsAddress = state.dnsAddress()
  const problems = state.problems()
  return {
    version: state.version,
    node: state.node(),
    datacenter: state.datacenter,
    pid: process.pid,
    startedAt: timeText(state.startedAtMs),
    ...readinessOf(state, problems),
    awaited,
    draining: state.isDraining(),
    reload: state.reload(),
    workers: state.pool.statuses((worker) => countByWorker[worker] ?? 0),
    catalog: {
      description: catalog?.description ?? '',
      ageMs:
        health?.lastGoodAtMs === undefined
          ? null
          : Math.max(0, Math.round(performance.now() - health.lastGoodAtMs)),
      lastContactMs: health?.lastContactMs ?? null,
      problems: messages(health?.problems),
    },
    certificates: {
      description: state.certificates()?.description ?? '',
      problems: messages(state.certificates()?.problems()),
    },
    capture: {
      mode: state.captureMode,
      inSync: state.captureMode === 'off' ? null : (capture.condition?.inSync ?? false),
      details: captureDetails(capture.condition),
      problems: messages(capture.problems),
    },
    state: state.state(),
    dns: { address: dnsAddress === undefined ? null : formatAddress(dnsAddress) },
    snapshotVersion: state.discovery()?.current().version ?? 0,
    problems,
    warnings: state.discovery()?.warnings() ?? [],
  }
}

/** The two words that status and metrics have in common. */
export function readinessOf(
  state: Pick<DaemonState, 'awaited' | 'isDraining'>,
  problems: readonly ProblemEntry[],
): { readonly ready: boolean; readonly serving: boolean } {
  const serving = state.awaited().length === 0 && !state.isDraining()
  return { ready: serving && !problems.some(({ blocks }) => blocks), serving }
}

/** What REDIRECT cannot do: docs/capture.md, "What stays". */
const IPTABLES_LIMITS =
  'connections are tracked: a full table (nf_conntrack_max) and NOTRACK rules refuse them'

/** What is to be known of capture: which way it diverts, what it spares, what holds meanwhile. */
function captureDetails(condition: CaptureCondition | undefined): [string, string][] {
  if (condition?.backend === undefined) return []
  const { backend, counts, repairs, lastRepair, isGuardHeld } = condition
  const details: [string, string][] = [['Backend', `${backend.kind}: ${backend.reason}`]]
  const guarded = counts?.guarded === undefined ? '' : `, ${counts.guarded} refused`
  details.push([
    'Guard',
    `in place${guarded}${isGuardHeld ? '' : ', not held against a flush by others'}`,
  ])
  if (backend.kind === 'iptables') details.push(['Limits', IPTABLES_LIMITS])
  if (counts?.spared !== undefined)
    details.push(['Spared', `${counts.spared} connections, open since before capture`])
  if (counts !== undefined && counts.permitted > 0)
    details.push(['Permitted', `${counts.permitted} connections passed without the mesh`])
  details.push(['Repairs', lastRepair === undefined ? '0' : `${repairs}, last: ${lastRepair}`])
  return details
}

function messages(problems: readonly Problem[] = []): readonly string[] {
  return problems.map(({ message }) => message)
}

/** What the workers avoid, put together. */
function ejectionsByKey(
  byWorker: Awaited<ReturnType<WorkerPool['ejections']>>,
): ReadonlyMap<string, EjectionEntry> {
  const entries = new Map<string, EjectionEntry>()
  for (const { key, reason, leftMs } of byWorker.flat()) {
    const before = entries.get(key)
    entries.set(key, {
      workers: (before?.workers ?? 0) + 1,
      ofWorkers: byWorker.length,
      reason,
      leftMs: Math.round(Math.max(before?.leftMs ?? 0, leftMs)),
    })
  }
  return entries
}

function serviceEntry(
  service: MeshService,
  ejections: ReadonlyMap<string, EjectionEntry>,
  failing: ReadonlyMap<string, string>,
): ServiceEntry {
  return {
    name: service.name,
    datacenter: service.datacenter,
    protocol: service.protocol,
    virtualIps: service.virtualIps,
    endpoints: service.endpoints.map((endpoint) => ({
      id: endpoint.id,
      node: endpoint.node,
      address: formatAddress(endpoint.tunnel),
      health: endpoint.health,
      failingCheck: failing.get(endpoint.key) ?? null,
      local: endpoint.local,
      service: endpoint.service,
      datacenter: endpoint.datacenter,
      priority: endpoint.priority,
      ejected: ejections.get(endpoint.key) ?? null,
    })),
  }
}

function localEntry(service: LocalService): LocalServiceEntry {
  return {
    name: service.name,
    id: service.id,
    target: service.target === undefined ? null : formatAddress(service.target),
    identity: service.selector === undefined ? null : selectorText(service.selector),
    capturePort: service.capturePort ?? null,
    upstreams: service.upstreams.map(({ destination, bind }) => ({
      destination,
      bind: bind === undefined ? null : formatAddress(bind),
    })),
  }
}

function tunnelEntry(peer: Awaited<ReturnType<WorkerPool['peers']>>[number]): TunnelEntry {
  return {
    source: peer.source,
    destination: peer.destination,
    peerAddress: peer.address ?? '',
    peerSpiffeId: peer.spiffeId,
    direction: peer.direction,
    state: peer.state,
    streams: peer.streams,
    rttMs: peer.roundTripMs ?? null,
    sentBytes: peer.sentBytes,
    receivedBytes: peer.receivedBytes,
    openedAt: timeText(Date.now() - peer.ageMs),
  }
}

function connectionEntry(connection: WorkerConnections['connections'][number]): ConnectionEntry {
  return {
    id: connection.id,
    direction: connection.direction,
    source: connection.source,
    destination: connection.destination ?? '',
    downstreamAddress: connection.downstream ?? connection.peer ?? '',
    originalDestination: connection.wanted ?? null,
    endpoint: connection.endpoint ?? null,
    openedAt: timeText(connection.openedAtMs),
    sentBytes: connection.sentBytes,
    receivedBytes: connection.receivedBytes,
    state: connectionStates[connection.state],
    peerAddress: connection.peer ?? null,
  }
}

function refusedEntry(refusal: Refused): RefusedEntry {
  return {
    ...connectionEntry(refusal),
    flag: refusal.flag,
    code: refusal.code,
    reason: refusal.reason,
    endedAt: timeText(refusal.endedAtMs),
  }
}

function timeText(wallMs: number): string {
  return new Date(wallMs).toISOString()
}
