/**
 * A running host, as the admin API, explain and the metrics see it: the constant facts, and a snapshot of the rest.
 */
import type { Catalog } from '../controlplane/catalog/catalog.ts'
import type { Discovery } from '../controlplane/discovery/publisher.ts'
import type { DnsServer } from '../controlplane/dns/server.ts'
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import type { ProblemEntry, ReloadStatus } from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { LocalService } from '../model/service.ts'
import { emptySnapshot } from '../model/snapshot.ts'
import type { HostReading } from '../telemetry/host-reading.ts'
import type { LinesLost } from './access-log-file.ts'
import type { RulesView } from './host-rules.ts'
import type { HostState } from './memory.ts'
import type { DeliveryStatus } from './reports/reporter.ts'
import type { WorkerPool } from './worker-pool.ts'

/** The parts that provide this host's knowledge of the mesh. */
export interface ControlPlane {
  readonly memory: HostState
  readonly catalog: Catalog
  readonly certificates: CertificateSource
  readonly discovery: Discovery
}

/** The part of {@link ControlPlane} that documents, explain and metrics read. */
export interface MeshKnowledge {
  readonly memory: Pick<HostState, 'status' | 'problems'>
  readonly catalog: Pick<Catalog, 'description' | 'health' | 'failingChecks' | 'watchPolicies'>
  readonly certificates: Pick<CertificateSource, 'description' | 'problems'>
  readonly discovery: Omit<Discovery, 'virtualAddresses' | 'dormant' | typeof Symbol.asyncDispose>
}

/** Used at the beginning of a start: the admin API runs before the control plane exists. */
export const NOTHING_KNOWN: MeshKnowledge = {
  memory: { status: () => ({ directory: '', parts: [], problems: [] }), problems: () => [] },
  catalog: {
    description: '',
    health: () => ({ lastGoodAtMs: undefined, problems: [] }),
    watchPolicies: (_destinations, onChange) => {
      onChange([])
      return { [Symbol.dispose]: () => undefined }
    },
  },
  certificates: { description: '', problems: () => [] },
  discovery: {
    current: () => emptySnapshot,
    problems: () => [],
    warnings: () => [],
    awaited: () => [],
    lookup: async () => ({ kind: 'unavailable' }),
    ownerOf: () => undefined,
    wanted: () => undefined,
    used: () => undefined,
    watchedServices: () => 0,
  },
}

/** A host. */
export interface Host {
  readonly version: string
  readonly datacenter: string
  readonly startedAtMs: number
  readonly captureMode: 'off' | 'on'
  readonly services: readonly LocalService[]
  readonly pool: WorkerPool
  /** The changing facts, read now. */
  now(): HostMoment
}

/** A host at one moment. */
export interface HostMoment extends LinesLost {
  readonly node: string
  /** What the host still waits for before it is ready. */
  readonly awaited: readonly string[]
  readonly isDraining: boolean
  /** All current problems. */
  readonly problems: readonly ProblemEntry[]
  readonly reload: ReloadStatus
  readonly rules: RulesView
  readonly leaves: readonly Leaf[]
  readonly bundle: TrustBundle | undefined
  /** Undefined while the resolver is off. */
  readonly dns: DnsServer | undefined
  readonly mesh: MeshKnowledge
  /** One entry for each aggregator of this host. */
  readonly reports: readonly DeliveryStatus[]
  readonly eventLoopLagMs: number
}

/** The two states of readiness that status and metrics share. */
export function readinessOf({
  awaited,
  isDraining,
  problems,
}: Pick<HostMoment, 'awaited' | 'isDraining' | 'problems'>): {
  readonly ready: boolean
  readonly serving: boolean
} {
  const serving = awaited.length === 0 && !isDraining
  return { ready: serving && !problems.some(({ blocks }) => blocks), serving }
}

/** The input of the main thread's metrics. */
export function readMetrics(host: Host): HostReading {
  const moment = host.now()
  const { mesh, rules, dns, leaves, logLinesLost, accessLinesLost, eventLoopLagMs } = moment
  const health = mesh.catalog.health()
  const workers = host.pool.statuses(() => 0)
  const counts = rules.condition?.counts
  return {
    ...readinessOf(moment),
    problems: countByCode(moment.problems),
    snapshotVersion: mesh.discovery.current().version,
    catalogLastSuccessMs: wallClockOf(health.lastGoodAtMs),
    state: mesh.memory.status(),
    consulLastContactMs: health.lastContactMs,
    captureInSync: rules.condition?.inSync,
    dnsQueries: dns?.counts(),
    watchedServices: mesh.discovery.watchedServices(),
    unknownCallersRefused: counts && {
      virtual: counts.refusedVirtual,
      instance: counts.refusedInstance,
    },
    captureCounts: counts,
    plainInbound: rules.plainInbound,
    captureRepairs: rules.condition?.repairs,
    reports: moment.reports,
    certificates: leaves,
    workersRunning: workers.filter(({ state }) => state === 'running').length,
    workerRestarts: workers.reduce((sum, { restarts }) => sum + restarts, 0),
    logLinesLost,
    accessLinesLost,
    eventLoopLagMs,
  }
}

function countByCode(problems: readonly ProblemEntry[]): ReadonlyMap<string, number> {
  const counts = new Map<string, number>()
  for (const { code } of problems) counts.set(code, (counts.get(code) ?? 0) + 1)
  return counts
}

function wallClockOf(monotonicMs: number | undefined): number | undefined {
  return monotonicMs === undefined ? undefined : Date.now() - (performance.now() - monotonicMs)
}
