/**
 * The documents of the admin API, made from the daemon's parts on each request.
 */
import { X509Certificate } from 'node:crypto'
import type { CaptureCondition } from '../controlplane/capture/capture.ts'
import { MeshError } from '../lib/errors.ts'
import { formatAddress } from '../model/address.ts'
import type {
  CertsDocument,
  ConnectionEntry,
  LocalServiceEntry,
  PeersDocument,
  RefusedEntry,
  StatusDocument,
  TunnelEntry,
} from '../model/admin.ts'
import { backendTraits } from '../model/capture-backend.ts'
import type { HostFacts } from '../model/facts.ts'
import type { Problem } from '../model/problem.ts'
import type { LocalService } from '../model/service.ts'
import type { MeshService } from '../model/snapshot.ts'
import type { Exposition } from '../telemetry/exposition.ts'
import type { AdminView } from './admin-server.ts'
import { withoutProbe } from './explain/answer.ts'
import { explain, type Question } from './explain/explain.ts'
import { serviceAskedFor } from './explain/route.ts'
import { selectorText } from './explain/words.ts'
import { collectFacts, type FactScope } from './facts.ts'
import { type Host, type HostMoment, readinessOf } from './host.ts'
import {
  ejectionsByKey,
  type InstanceKnowledge,
  policiesOf,
  serviceEntry,
  serviceRoutes,
} from './service-documents.ts'
import type { WorkerConnections, WorkerViews } from './worker-views.ts'

type Refused = Awaited<ReturnType<WorkerViews['refusals']>>[number]

/** Maximum instances that one question probes, and maximum questions that probe at the same time. */
const MAX_PROBED = 16
const MAX_PROBING = 4

/** Maximum connections listed in one document; the rest is only counted. */
const MAX_CONNECTIONS = 10_000

const connectionStates = {
  opening: 'connecting',
  open: 'open',
  'half-closed': 'halfClosed',
} as const

/** The admin API's view of a daemon. */
export function createAdminView(host: Host, exposition: Exposition): AdminView {
  const certs = (): CertsDocument => certsOf(host.now())
  let probing = 0
  const peers = async (): Promise<PeersDocument> => ({
    tunnels: (await host.pool.views.peers()).map(tunnelEntry),
  })
  const facts = async (scope: FactScope): Promise<HostFacts> => {
    const [{ countByWorker }, { tunnels }] = await Promise.all([
      host.pool.views.connections(0),
      peers(),
    ])
    const sources = { status: statusOf(host, countByWorker), certs: certs(), tunnels }
    return collectFacts(host, sources, scope)
  }
  return {
    status: async () => statusOf(host, (await host.pool.views.connections(0)).countByWorker),
    services: async () => {
      const known = await instanceKnowledge(host)
      return {
        services: servicesOf(host).map((service) => serviceEntry(service, known)),
        local: host.services.map(localEntry),
      }
    },
    peers,
    connections: async () => {
      const { connections, countByWorker } = await host.pool.views.connections(MAX_CONNECTIONS)
      const listed = connections.slice(0, MAX_CONNECTIONS).map(connectionEntry)
      const total = countByWorker.reduce((sum, count) => sum + count, 0)
      return { connections: listed, omitted: Math.max(0, total - listed.length) }
    },
    refused: async () => ({ refused: (await host.pool.views.refusals()).map(refusedEntry) }),
    snapshot: () => facts('all'),
    explain: async (query) => {
      const { question, isProbed } = await questionOf(host, query)
      const { from, to } = pairOf(question)
      const source = isProbed ? proberOf(host, from) : from
      const bare = await facts({ service: undefined })
      const service = serviceAskedFor(bare, from, to, (ip, port) =>
        host.now().mesh.discovery.ownerOf(ip, port),
      )
      const explanation = explain(service === undefined ? bare : await facts({ service }), question)
      const endpoints = explanation.endpoints.flatMap(({ endpoint, excluded }) =>
        excluded === null ? [endpoint] : [],
      )
      if (!isProbed) return explanation
      if (explanation.service === null || endpoints.length === 0) return withoutProbe(explanation)
      if (probing >= MAX_PROBING)
        throw new MeshError('HM_ADMIN_BUSY', `Cannot probe now: ${probing} others are under way`)
      probing += 1
      try {
        const probe = {
          source,
          service: explanation.service,
          endpoints: endpoints.slice(0, MAX_PROBED),
        }
        const known = await facts({ service, probe })
        return { ...explain(known, question), probes: known.probes }
      } finally {
        probing -= 1
      }
    },
    certs: async () => certs(),
    intentions: async () => ({
      destinations: policiesOf(host.services, host.now().mesh.discovery.current()),
    }),
    routes: async () => {
      const known = await instanceKnowledge(host)
      return { services: servicesOf(host).map((service) => serviceRoutes(service, known)) }
    },
    metrics: () => exposition.metrics(),
  }
}

/** Parses the query of `/v1/explain`. */
async function questionOf(
  host: Host,
  query: string,
): Promise<{ readonly question: Question; readonly isProbed: boolean }> {
  const words = new URLSearchParams(query)
  const isProbed = words.get('probe') === '1'
  const question = await pairOrConnection(host, words)
  if (isProbed && question.kind === 'connection')
    throw new MeshError('HM_USAGE_QUESTION', 'Cannot probe for a connection: ask for from and to')
  return { question, isProbed }
}

/** The local service in whose name instances are probed: the probe needs its certificate. */
function proberOf({ services }: Host, from: string): string {
  const caller = services.find(({ name, id }) => name === from || id === from)
  if (caller !== undefined) return caller.name
  throw new MeshError(
    'HM_USAGE_QUESTION',
    `Cannot probe as ${from}: it is no service of this host`,
    {
      hint: `Probe on the host that runs ${from}`,
    },
  )
}

async function pairOrConnection({ pool }: Host, words: URLSearchParams): Promise<Question> {
  const [from, to, id] = [words.get('from'), words.get('to'), words.get('connection')]
  if (id === null && from !== null && to !== null) return { kind: 'pair', from, to }
  if (id === null || from !== null || to !== null)
    throw new MeshError(
      'HM_USAGE_QUESTION',
      'Cannot explain: ask for from and to, or for a connection',
    )
  const open = await pool.views.connection(id)
  if (open !== undefined) return { kind: 'connection', connection: connectionEntry(open) }
  const refused = (await pool.views.refusals()).find((each) => each.id === id)
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

function certsOf({ bundle, leaves }: HostMoment): CertsDocument {
  return {
    trustDomain: bundle?.trustDomain ?? null,
    roots: (bundle?.rootsPem ?? []).map((pem) => {
      const certificate = new X509Certificate(pem)
      return {
        fingerprint: certificate.fingerprint256,
        notAfter: certificate.validToDate.toISOString(),
      }
    }),
    leaves: leaves.map((leaf) => ({
      service: leaf.service,
      spiffeId: leaf.spiffeId,
      serialNumber: leaf.serialNumber,
      notBefore: timeText(leaf.notBeforeMs),
      notAfter: timeText(leaf.notAfterMs),
    })),
  }
}

function statusOf(host: Host, countByWorker: readonly number[]): StatusDocument {
  const moment = host.now()
  const { awaited, rules, dns, problems } = moment
  const { memory, catalog, certificates, discovery } = moment.mesh
  const health = catalog.health()
  return {
    version: host.version,
    node: moment.node,
    datacenter: host.datacenter,
    pid: process.pid,
    startedAt: timeText(host.startedAtMs),
    ...readinessOf(moment),
    awaited,
    draining: moment.isDraining,
    reload: moment.reload,
    workers: host.pool.statuses((worker) => countByWorker[worker] ?? 0),
    catalog: {
      description: catalog.description,
      ageMs:
        health.lastGoodAtMs === undefined
          ? null
          : Math.max(0, Math.round(performance.now() - health.lastGoodAtMs)),
      lastContactMs: health.lastContactMs ?? null,
      problems: messages(health.problems),
    },
    certificates: {
      description: certificates.description,
      problems: messages(certificates.problems()),
    },
    capture: {
      mode: host.captureMode,
      inSync: host.captureMode === 'off' ? null : (rules.condition?.inSync ?? false),
      details: captureDetails(rules.condition),
      problems: messages(rules.problems),
    },
    state: memory.status(),
    dns: { address: dns === undefined ? null : formatAddress(dns.address) },
    reports: moment.reports.map(({ aggregator, waiting, lastSuccessMs }) => ({
      aggregator,
      waiting,
      lastSuccessAt: lastSuccessMs === undefined ? null : new Date(lastSuccessMs).toISOString(),
    })),
    snapshotVersion: discovery.current().version,
    problems,
    warnings: discovery.warnings(),
  }
}

/** Details of capture: how it diverts, what it spares, and what applies meanwhile. */
function captureDetails(condition: CaptureCondition | undefined): [string, string][] {
  if (condition?.backend === undefined) return []
  const { backend, counts, repairs, lastRepair, isGuardHeld } = condition
  const details: [string, string][] = [['Backend', `${backend.kind}: ${backend.reason}`]]
  const guarded = counts?.guarded === undefined ? '' : `, ${counts.guarded} refused`
  details.push([
    'Guard',
    `in place${guarded}${isGuardHeld ? '' : ', not held against a flush by others'}`,
  ])
  const { limits } = backendTraits[backend.kind]
  if (limits !== undefined) details.push(['Limits', limits])
  if (counts?.spared !== undefined)
    details.push(['Spared', `${counts.spared} connections, open since before capture`])
  if (counts !== undefined && counts.permitted > 0)
    details.push(['Permitted', `${counts.permitted} connections passed without the mesh`])
  details.push(['Repairs', lastRepair === undefined ? '0' : `${repairs}, last: ${lastRepair}`])
  return details
}

function messages(problems: readonly Problem[]): readonly string[] {
  return problems.map(({ message }) => message)
}

function servicesOf(host: Host): MeshService[] {
  return [...host.now().mesh.discovery.current().services.values()]
}

async function instanceKnowledge(host: Host): Promise<InstanceKnowledge> {
  return {
    ejections: ejectionsByKey(await host.pool.views.ejections()),
    failing: host.now().mesh.catalog.failingChecks?.() ?? new Map<string, string>(),
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

function tunnelEntry(peer: Awaited<ReturnType<WorkerViews['peers']>>[number]): TunnelEntry {
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
    originalDestination: connection.originalDestination ?? null,
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
