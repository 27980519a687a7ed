/**
 * Stores reports: those that arrive together in one transaction.
 */
import { MeshError } from '../../lib/errors.ts'
import type { Database } from './database.ts'
import { type LayoutPlan, planLayout, type RecordEncoder } from './encode-record.ts'
import type { FactsLog } from './facts-log.ts'
import type { HostTable, StoredHost, StoredRun } from './host-table.ts'
import type { Answers, StoredReport } from './protocol.ts'
import type { Registry } from './registry.ts'
import type { Tiers } from './tiers.ts'

/** The parts of the store that a report changes. */
interface WriterOptions {
  readonly database: Database
  readonly hosts: HostTable
  readonly registry: Registry
  readonly tiers: Tiers
  readonly facts: FactsLog
  readonly encoder: RecordEncoder
  readonly maxHosts: number
}

/** A plan older than this is made again, so that the use of its cells is noted. */
const PLAN_LIFE_MS = 86_400_000

/** See the head of this file. */
export class Writer {
  readonly #options: WriterOptions
  /** Records older than all that is kept. */
  droppedRecords = 0

  constructor(options: WriterOptions) {
    this.#options = options
  }

  /** Stores one report; part of a transaction. @throws MeshError HM_STORE_FULL, and what SQLite throws */
  store(report: StoredReport): Answers['accept'] {
    const { hosts } = this.#options
    const host = this.#hostOf(report)
    const run = hosts.run(host, report.run, report.receivedAtMs)
    const isFirstOfHost = host.runs.size === 1 && run.accepted === 0
    let factsAtMs: number | undefined
    let isFirst = isFirstOfHost
    for (const record of report.records) {
      if (record.sequence <= run.accepted) continue
      // Of a host that was unknown, the records before the first are not missing: nobody sent them here.
      if (!isFirst) host.lost += Math.max(0, record.sequence - run.accepted - record.merged)
      isFirst = false
      run.accepted = record.sequence
      host.lateMs = record.ageMs
      const endMs = report.receivedAtMs - record.ageMs
      const row = this.#options.encoder.encode(record, this.#planFor(report, host, run), {
        host: host.id,
        run: run.id,
        nowMs: report.receivedAtMs,
      })
      if (!this.#options.tiers.add(host, endMs, row)) this.droppedRecords += 1
      if (record.facts !== undefined) {
        this.#options.facts.note(host, record.facts, endMs)
        factsAtMs = endMs
      }
    }
    run.lastAtMs = Math.max(run.lastAtMs, report.receivedAtMs)
    host.lastAtMs = Math.max(host.lastAtMs, report.receivedAtMs)
    host.clockOffsetMs = report.clockOffsetMs
    hosts.saveRun(run)
    hosts.save(host)
    return { accepted: run.accepted, lost: host.lost, lateMs: host.lateMs, factsAtMs }
  }

  /** Notes that another has reported with the name of a host; part of a transaction. */
  noteConflict(name: string, fromMs: number, toMs: number): void {
    const host = this.#options.hosts.find(name)
    if (host === undefined) return
    host.conflictFromMs = fromMs
    host.conflictToMs = toMs
    this.#options.hosts.save(host)
  }

  #hostOf({ host: name, keyHash, receivedAtMs }: StoredReport): StoredHost {
    const { hosts, tiers, maxHosts } = this.#options
    const known = hosts.find(name)
    if (known === undefined) {
      if (hosts.size >= maxHosts)
        throw new MeshError('HM_STORE_FULL', `Cannot take another host: there are ${maxHosts}`, {
          hint: 'Hosts that have no figures any more are forgotten; see whether somebody reports under invented names',
        })
      return hosts.add(name, keyHash, receivedAtMs, tiers.marksAt(receivedAtMs))
    }
    if (known.keyHash !== keyHash) {
      known.keyHash = keyHash
      known.conflictFromMs = undefined
      known.conflictToMs = undefined
    }
    return known
  }

  #planFor(report: StoredReport, host: StoredHost, run: StoredRun): LayoutPlan | undefined {
    const { layout, columns, receivedAtMs } = report
    const { plan } = run
    if (plan?.layout === layout && receivedAtMs - plan.madeAtMs < PLAN_LIFE_MS) return plan
    if (columns === undefined) return undefined
    const origin = { host: host.id, nowMs: receivedAtMs }
    run.plan = planLayout(this.#options.registry, layout, columns, origin)
    return run.plan
  }
}
