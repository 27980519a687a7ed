/**
 * Connects the reporter with the parts of a daemon: under which service it reports, what it reads, where records wait.
 */
import { createHash, randomBytes } from 'node:crypto'
import type { Config } from '../../config/schema.ts'
import { findCgroupRoot } from '../../controlplane/capture/workloads.ts'
import type { Log } from '../../lib/log.ts'
import type { StateFile } from '../../lib/state-file.ts'
import type { Problem } from '../../model/problem.ts'
import type { ReportColumns } from '../../model/report.ts'
import type { LocalService } from '../../model/service.ts'
import { reportColumns } from '../../telemetry/report-columns.ts'
import type { WorkerTotals } from '../../telemetry/totals.ts'
import type { Host } from '../host.ts'
import { WorkloadMeter } from '../workload-use.ts'
import { hostKey, readKept, validReports } from './kept-reports.ts'
import type { RunOfRecords } from './record-queue.ts'
import { hostState, reportedFacts } from './reported-facts.ts'
import { type DeliveryStatus, type KeptReports, Reporter } from './reporter.ts'

/** What reporting reads of a daemon. */
export interface ReportingParts {
  readonly host: Host
  readonly totals: WorkerTotals
  readonly backend: string | undefined
  /** The files of the state directory. */
  readonly keyFile: StateFile
  readonly recordsFile: StateFile
  /** False for the successor of a running daemon, which hands its records over itself. */
  readonly takesKept: boolean
  readonly log: Log
}

/** The reports of one daemon: none before {@link Reporting.start}, and none on a host that reports to nobody. */
export class Reporting implements AsyncDisposable {
  /** The service as which this host reports, a pure caller; undefined when it reports to nobody. */
  readonly service: LocalService | undefined
  readonly #config: Config
  #reporter: Reporter | undefined

  constructor(config: Config) {
    this.#config = config
    this.service = reportingService(config)
  }

  /** Starts to report. */
  async start(parts: ReportingParts): Promise<void> {
    if (this.service === undefined || this.#reporter !== undefined) return
    const cgroupRoot = await findCgroupRoot().catch(() => undefined)
    this.#reporter = createReporter(this.#config, parts, cgroupRoot)
  }

  /** The state of each delivery. */
  statuses(): readonly DeliveryStatus[] {
    return this.#reporter?.statuses() ?? []
  }

  /** One for each aggregator that has not answered for long. */
  problems(): readonly Problem[] {
    return this.#reporter?.problems() ?? []
  }

  /** Problems of the host; those of the service as which it only reports do not keep it from being ready. */
  withoutOwnBlocking(problems: readonly Problem[]): readonly Problem[] {
    const { service } = this
    const isServed = this.#config.services.some(({ name }) => name === service?.name)
    if (service === undefined || isServed) return problems
    return problems.map((problem) =>
      problem.subject === service.name ? problem.withoutBlocking() : problem,
    )
  }

  /** Ends the connections to aggregators, which a drain would wait for; counts are kept. */
  suspend(): void {
    this.#reporter?.suspend()
  }

  /** Delivers again. */
  resume(): void {
    this.#reporter?.resume()
  }

  /** While suspended: what another process of this host is to deliver. With `isLast` nothing is counted afterwards. */
  async release(isLast: boolean): Promise<KeptReports> {
    if (isLast) await this.#reporter?.finish()
    return this.#reporter?.release() ?? {}
  }

  /** Takes what {@link release} returned in another process. */
  adopt(kept: unknown): void {
    const valid = validReports(kept)
    if (valid !== undefined) this.#reporter?.adopt(valid)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reporter?.[Symbol.asyncDispose]()
  }
}

function reportingService({ reports }: Config): LocalService | undefined {
  if (reports.to.length === 0) return undefined
  return {
    name: reports.as,
    id: reports.as,
    target: undefined,
    connectPort: undefined,
    selector: undefined,
    capturePort: undefined,
    upstreams: reports.to.map((destination) => ({ destination, bind: undefined })),
  }
}

function createReporter(
  { reports, node }: Config,
  { host, totals, backend, keyFile, recordsFile, takesKept, log }: ReportingParts,
  cgroupRoot: string | undefined,
): Reporter {
  const { pool } = host
  const workloads = new WorkloadMeter({ services: host.services, cgroupRoot })
  return new Reporter({
    aggregators: reports.to,
    keepMs: reports.keep,
    key: hostKey(keyFile),
    run: newRun(),
    host: () => host.now().node,
    read: () => ({ traffic: totals.traffic(), cells: totals.cells() }),
    view: () => {
      const moment = host.now()
      return {
        state: hostState(moment),
        problems: [...new Set(moment.problems.map(({ code }) => code))],
      }
    },
    facts: async () => {
      const peers = await pool.views.peers()
      return reportedFacts(host, host.now(), {
        zone: node.zone,
        nodeVersion: process.version,
        backend,
        tunnels: {
          sessions: peers.length,
          peers: new Set(peers.map(({ address }) => address?.replace(/:\d+$/, ''))).size,
        },
        nowMs: Date.now(),
      })
    },
    workloads: () => workloads.read(),
    dial: (aggregator) => pool.dial(reports.as, aggregator),
    kept: takesKept ? readKept(recordsFile) : {},
    onKept: (kept) => recordsFile.save(() => JSON.stringify(kept)),
    log: log.child('reports'),
  })
}

/** Identifies this process and its columns. */
function newRun(): RunOfRecords {
  const columns = reportColumns()
  return { run: randomBytes(16).toString('base64url'), layout: layoutOf(columns), columns }
}

function layoutOf(columns: ReportColumns): string {
  return createHash('sha256').update(JSON.stringify(columns)).digest('base64url').slice(0, 22)
}
