/**
 * The store of the fleet: its memory of hosts and of the last seconds here, the past in a thread of its own.
 *
 * Whose a name is is decided here, at once and for all reports; the thread only writes it down.
 */
import { hash } from 'node:crypto'
import type { Clock } from '../lib/clock.ts'
import { describeError, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { HostReport, ReportedFacts } from '../model/report.ts'
import { FactsBudget } from './facts-budget.ts'
import type { Figures, PairFigures } from './figures.ts'
import type {
  Accepted,
  FleetStore,
  HostReading,
  PairFilter,
  Span,
  Step,
  WorkloadReading,
} from './fleet-store.ts'
import { LiveViews } from './live-views.ts'
import { RecentAnswers } from './recent-answers.ts'
import type { Answers, KnownHost, PastHost, PastWorkload } from './store/protocol.ts'
import { readHostFigures, readPairs, readSteps } from './store/read-answer.ts'
import { stepMs, stepOf, type TierName, tierNames } from './store/steps.ts'
import { StoreClient } from './store-client.ts'

/** Settings of the store; what is left out is {@link storeDefaults}. */
export interface FleetStoreOptions {
  /** The file; created if it is missing. */
  readonly path: string
  /** Hard limit of the size of the file with its log. */
  readonly maxBytes?: number
  /** How long steps of 10 s, 1 min and 1 h are kept. */
  readonly secondsMs?: number
  readonly minutesMs?: number
  readonly hoursMs?: number
  /** Most hosts. */
  readonly maxHosts?: number
  /** A host that has been silent for this long may come back with another key. */
  readonly rebindAfterMs?: number
  readonly clock: Clock
  readonly log: Log
}

/** What holds where the options say nothing. */
const storeDefaults = {
  maxBytes: 4 * 1_024 ** 3,
  secondsMs: 24 * 3_600_000,
  minutesMs: 14 * 24 * 3_600_000,
  hoursMs: 366 * 24 * 3_600_000,
  maxHosts: 20_000,
  rebindAfterMs: 7 * 24 * 3_600_000,
} as const

/** The least size with which the store can work. */
const MIN_BYTES = 8 * 1_024 * 1_024

/** How often what is due is done, and how long it may take each time; milliseconds. */
const MAINTAIN_EVERY_MS = 1_000
const MAINTAIN_BUDGET_MS = 50

/** A host counts as conflicting until nobody else has reported with its name for this long, milliseconds. */
const CONFLICT_MS = 600_000

/** How often a conflict that goes on is written down, milliseconds. */
const NOTE_CONFLICT_MS = 10_000

/** A state of a live view holds for this long, milliseconds. */
const STATE_MS = 30_000

/** A question about a time that is not older than this is about now, milliseconds. */
const PRESENT_MS = 5_000

const DAY_MS = 86_400_000

/** Questions that may wait for the thread: beyond this, reports are refused. */
const MAX_WAITING = 4_096

/** Runs of a host of which the last stored record is remembered here. */
const MAX_RUNS = 8

/** What is remembered of a host. */
interface Host {
  readonly name: string
  keyHash: string
  /** Whether the thread has written down whose the name is. */
  isStored: boolean
  readonly firstAtMs: number
  lastAtMs: number
  lateMs: number
  lost: number
  clockOffsetMs: number | undefined
  conflictFromMs: number | undefined
  conflictToMs: number | undefined
  conflictNotedAtMs: number
  facts: ReportedFacts | undefined
  factsAtMs: number | undefined
  readonly accepted: Map<string, number>
}

/** Opens the store, which creates its file. @throws MeshError HM_STORE_FAILED, HM_STORE_FOREIGN */
export async function openFleetStore(options: FleetStoreOptions): Promise<SqliteFleetStore> {
  const { path, log } = options
  const settings = { ...storeDefaults, ...definedOf(options) }
  const maxBytes = Math.max(MIN_BYTES, settings.maxBytes)
  const { secondsMs, minutesMs, hoursMs, maxHosts, rebindAfterMs } = settings
  const client = new StoreClient({ path, maxBytes, secondsMs, minutesMs, hoursMs, maxHosts }, log)
  try {
    const known = await client.open()
    return new SqliteFleetStore({
      client,
      known,
      maxHosts,
      rebindAfterMs,
      hoursMs,
      clock: options.clock,
      log,
    })
  } catch (thrown) {
    await client.abandon()
    throw thrown
  }
}

interface StoreParts {
  readonly client: StoreClient
  readonly known: readonly KnownHost[]
  readonly maxHosts: number
  readonly rebindAfterMs: number
  /** Hosts that were silent for longer have no figures any more and are forgotten. */
  readonly hoursMs: number
  readonly clock: Clock
  readonly log: Log
}

/** See the head of this file. */
export class SqliteFleetStore implements FleetStore {
  readonly #parts: StoreParts
  readonly #client: StoreClient
  readonly #hosts = new Map<string, Host>()
  readonly #live = new LiveViews()
  /** Sums of all hosts together. */
  readonly #recentPairs = new RecentAnswers<readonly PairFigures[]>()
  /** Of all hosts. */
  readonly #recentWorkloads = new RecentAnswers<readonly WorkloadReading[]>()
  readonly #facts = new FactsBudget<Host>()
  readonly #timer: NodeJS.Timeout
  #maintaining: Promise<boolean> | undefined
  #latestAtMs = 0

  constructor(parts: StoreParts) {
    this.#parts = parts
    this.#client = parts.client
    for (const known of parts.known) {
      const host = rememberedHost(known)
      this.#hosts.set(host.name, host)
      if (host.facts !== undefined) this.#facts.set(host, host.facts)
    }
    this.#timer = setInterval(() => this.#maintainUnasked(), MAINTAIN_EVERY_MS)
    this.#timer.unref()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    await this.#client[Symbol.asyncDispose]()
  }

  async accept(report: HostReport, receivedAtMs: number): Promise<Accepted> {
    const keyHash = hash('sha256', report.key, 'base64url')
    const host = this.#hostOf(report.host, keyHash, receivedAtMs)
    if (host === 'conflict') return { kind: 'conflict' }
    host.lastAtMs = Math.max(host.lastAtMs, receivedAtMs)
    host.clockOffsetMs = report.clockMs - receivedAtMs
    this.#latestAtMs = Math.max(this.#latestAtMs, receivedAtMs)
    this.#live.add(report, receivedAtMs)
    const accepted = host.accepted.get(report.run)
    if (report.records.length === 0 && accepted !== undefined && host.isStored)
      return { kind: 'accepted', accepted }
    try {
      const answer = await this.#store(report, receivedAtMs, keyHash)
      this.#noteChange(report, receivedAtMs)
      const facts = learn(host, report, receivedAtMs, answer)
      if (facts !== undefined) this.#facts.set(host, facts)
      return { kind: 'accepted', accepted: answer.accepted }
    } catch (thrown) {
      // The name is free again, as if nobody had reported.
      if (!host.isStored && this.#hosts.get(host.name) === host) this.#forget(host)
      throw thrown
    }
  }

  async pairs(span: Span, filter: PairFilter = {}): Promise<readonly PairFigures[]> {
    const ask = async (): Promise<readonly PairFigures[]> =>
      readPairs(await this.#client.ask({ kind: 'pairs', span, filter }), this.#client.meanings)
    const { sumHosts, host, source, destination } = filter
    const isOfAll = sumHosts === true && (host ?? source ?? destination) === undefined
    return await (isOfAll ? this.#recentPairs.get(span, this.#nowMs(), ask) : ask())
  }

  livePairs(nowMs: number): { readonly spanMs: number; readonly pairs: readonly PairFigures[] } {
    return this.#live.read(nowMs)
  }

  async history(
    span: Span & { readonly stepMs: number },
    filter: PairFilter = {},
  ): Promise<readonly Step[]> {
    const tier = tierOf(span.stepMs)
    const answer = await this.#client.ask({ kind: 'history', span, tier, filter })
    return readSteps(answer, tier, this.#client.meanings)
  }

  async hosts(atMs: number): Promise<readonly HostReading[]> {
    if (atMs >= this.#latestAtMs - PRESENT_MS) return this.#presentHosts(atMs)
    const past = await this.#client.ask({ kind: 'hosts', atMs })
    return past.flatMap((host) => this.#pastHost(host, atMs))
  }

  async hostFigures(span: Span, host: string): Promise<Figures> {
    const answer = await this.#client.ask({ kind: 'hostFigures', span, host })
    return readHostFigures(answer, this.#client.meanings)
  }

  async workloads(span: Span, host?: string): Promise<readonly WorkloadReading[]> {
    const ask = async (): Promise<readonly WorkloadReading[]> => {
      const found = await this.#client.ask({ kind: 'workloads', span, host })
      return found.map(toWorkloadReading)
    }
    return await (host === undefined ? this.#recentWorkloads.get(span, this.#nowMs(), ask) : ask())
  }

  async status(): Promise<Answers['status']> {
    return await this.#client.ask({ kind: 'status' })
  }

  /**
   * Rolls up and deletes what is due, which also happens by itself once a second. Returns false when it has not come
   * to an end within `budgetMs`.
   */
  async maintain(nowMs: number, budgetMs: number = MAINTAIN_BUDGET_MS): Promise<boolean> {
    this.#live.expire(nowMs)
    this.#recentPairs.expire(nowMs)
    this.#recentWorkloads.expire(nowMs)
    for (const host of this.#hosts.values())
      if (host.lastAtMs < nowMs - this.#parts.hoursMs - DAY_MS) this.#forget(host)
    return await this.#client.ask({ kind: 'maintain', nowMs, budgetMs })
  }

  /** Answers about the time of these records are void. */
  #noteChange({ records }: HostReport, receivedAtMs: number): void {
    for (const { ageMs } of records) {
      const step = stepOf('seconds', receivedAtMs - ageMs)
      const [fromMs, toMs] = [step * stepMs.seconds, (step + 1) * stepMs.seconds]
      this.#recentPairs.changed(fromMs, toMs)
      this.#recentWorkloads.changed(fromMs, toMs)
    }
  }

  #nowMs(): number {
    return this.#parts.clock.wallMs()
  }

  #maintainUnasked(): void {
    if (this.#maintaining !== undefined) return
    this.#maintaining = this.maintain(this.#nowMs())
    this.#maintaining
      .catch((thrown: unknown) =>
        this.#parts.log.error('Cannot maintain the store', { error: describeError(thrown) }),
      )
      .finally(() => (this.#maintaining = undefined))
  }

  #store(report: HostReport, receivedAtMs: number, keyHash: string): Promise<Answers['accept']> {
    if (this.#client.waiting >= MAX_WAITING)
      throw new MeshError('HM_STORE_BUSY', 'Cannot store a report: too many are waiting', {
        hint: 'The host sends it again; give the aggregator a faster disk if this goes on',
      })
    const { host, run, layout, columns, records, clockMs } = report
    return this.#client.ask({
      kind: 'accept',
      report: {
        host,
        keyHash,
        run,
        receivedAtMs,
        clockOffsetMs: clockMs - receivedAtMs,
        layout,
        columns: records.length === 0 ? undefined : columns,
        records,
      },
    })
  }

  /** The host with this name and key; binds the name if it is free. @throws MeshError HM_STORE_FULL */
  #hostOf(name: string, keyHash: string, nowMs: number): Host | 'conflict' {
    const known = this.#hosts.get(name)
    if (known === undefined) {
      const { maxHosts } = this.#parts
      if (this.#hosts.size >= maxHosts)
        throw new MeshError('HM_STORE_FULL', `Cannot take another host: there are ${maxHosts}`, {
          hint: 'See whether somebody reports under invented names, or allow more hosts',
        })
      const host = newHost(name, keyHash, nowMs)
      this.#hosts.set(name, host)
      return host
    }
    if (known.keyHash === keyHash) return known
    if (nowMs - known.lastAtMs < this.#parts.rebindAfterMs) {
      this.#noteConflict(known, nowMs)
      return 'conflict'
    }
    this.#parts.log.warn('A host that was silent for long has come back with another key', {
      host: name,
    })
    known.keyHash = keyHash
    known.isStored = false
    known.conflictFromMs = undefined
    known.conflictToMs = undefined
    known.accepted.clear()
    return known
  }

  #forget(host: Host): void {
    this.#hosts.delete(host.name)
    this.#facts.forget(host)
  }

  #noteConflict(host: Host, nowMs: number): void {
    if (host.conflictToMs === undefined || nowMs - host.conflictToMs > CONFLICT_MS)
      host.conflictFromMs = nowMs
    host.conflictToMs = nowMs
    if (nowMs - host.conflictNotedAtMs < NOTE_CONFLICT_MS) return
    host.conflictNotedAtMs = nowMs
    const fromMs = host.conflictFromMs ?? nowMs
    this.#parts.log.warn('Another host reports with the name of a host', { host: host.name })
    this.#client
      .ask({ kind: 'conflict', host: host.name, fromMs, toMs: nowMs })
      .catch((thrown: unknown) =>
        this.#parts.log.error('Cannot note a conflict', { error: describeError(thrown) }),
      )
  }

  #presentHosts(atMs: number): HostReading[] {
    const readings: HostReading[] = []
    for (const host of this.#hosts.values()) {
      if (host.firstAtMs > atMs) continue
      const { facts, factsAtMs, lastAtMs } = host
      const state = this.#live.stateOf(host.name, atMs - STATE_MS) ?? facts?.state
      readings.push(toReading(host, atMs, { lastAtMs, facts, factsAtMs, state }))
    }
    return readings
  }

  #pastHost({ name, lastAtMs, facts: stored }: PastHost, atMs: number): HostReading[] {
    const host = this.#hosts.get(name)
    if (host === undefined) return []
    const facts = stored === undefined ? undefined : parseFacts(stored.json)
    const factsAtMs = stored?.atMs
    return [toReading(host, atMs, { lastAtMs, facts, factsAtMs, state: facts?.state })]
  }
}

/** Takes what the thread says about a host; returns its facts if they are new. */
function learn(
  host: Host,
  report: HostReport,
  receivedAtMs: number,
  answer: Answers['accept'],
): ReportedFacts | undefined {
  host.isStored = true
  host.lost = answer.lost
  host.lateMs = answer.lateMs
  host.accepted.delete(report.run)
  host.accepted.set(report.run, answer.accepted)
  const [oldest] = host.accepted.keys()
  if (host.accepted.size > MAX_RUNS && oldest !== undefined) host.accepted.delete(oldest)
  if (answer.factsAtMs === undefined || answer.factsAtMs < (host.factsAtMs ?? 0)) return undefined
  for (const { facts, ageMs } of report.records)
    if (facts !== undefined && receivedAtMs - ageMs === answer.factsAtMs) {
      host.factsAtMs = answer.factsAtMs
      return facts
    }
  return undefined
}

function newHost(name: string, keyHash: string, nowMs: number): Host {
  return {
    name,
    keyHash,
    isStored: false,
    firstAtMs: nowMs,
    lastAtMs: nowMs,
    lateMs: 0,
    lost: 0,
    clockOffsetMs: undefined,
    conflictFromMs: undefined,
    conflictToMs: undefined,
    conflictNotedAtMs: -Infinity,
    facts: undefined,
    factsAtMs: undefined,
    accepted: new Map(),
  }
}

function rememberedHost({ facts, ...known }: KnownHost): Host {
  return {
    ...known,
    isStored: true,
    conflictNotedAtMs: -Infinity,
    facts: facts === undefined ? undefined : parseFacts(facts.json),
    factsAtMs: facts?.atMs,
    accepted: new Map(),
  }
}

function toReading(
  host: Host,
  atMs: number,
  moment: Pick<HostReading, 'facts' | 'factsAtMs' | 'state'> & { readonly lastAtMs: number },
): HostReading {
  const { conflictFromMs, conflictToMs } = host
  const { lastAtMs, ...rest } = moment
  return {
    name: host.name,
    isConflicting:
      conflictFromMs !== undefined &&
      conflictToMs !== undefined &&
      conflictFromMs <= atMs &&
      atMs - conflictToMs <= CONFLICT_MS,
    firstReportAtMs: host.firstAtMs,
    lastReportAtMs: lastAtMs,
    lateMs: host.lateMs,
    lostRecords: host.lost,
    clockOffsetMs: host.clockOffsetMs,
    ...rest,
  }
}

function toWorkloadReading(past: PastWorkload): WorkloadReading {
  const { host, service, spanMs, cpuMs, memoryBytes, tasks, sockets } = past
  const share = (waitMs: number | undefined): number | undefined =>
    waitMs === undefined || spanMs === 0 ? undefined : Math.min(1, waitMs / spanMs)
  const pressure = definedOf({
    cpu: share(past.cpuWaitMs),
    memory: share(past.memoryWaitMs),
    io: share(past.ioWaitMs),
  })
  return {
    host,
    spanMs,
    use: {
      service,
      ...definedOf({ cpuMs, memoryBytes, tasks, sockets }),
      ...(Object.keys(pressure).length > 0 && { pressure }),
    },
  }
}

/** @throws MeshError HM_STORE_STEP_UNKNOWN */
function tierOf(ms: number): TierName {
  const tier = tierNames.find((name) => stepMs[name] === ms)
  if (tier === undefined)
    throw new MeshError('HM_STORE_STEP_UNKNOWN', `Cannot read steps of ${ms} ms`, {
      hint: 'Steps are 10 s, 1 min or 1 h long',
    })
  return tier
}

/** Facts that the thread has written down. */
function parseFacts(json: string): ReportedFacts {
  const facts: ReportedFacts = JSON.parse(json)
  return facts
}

/** Without the members that are undefined. */
function definedOf<T extends object>(value: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- what is left out is what the type leaves out
  return Object.fromEntries(Object.entries(value).filter(([, member]) => member !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>
  }
}
