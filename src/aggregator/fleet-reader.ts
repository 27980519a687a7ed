/**
 * Answers the questions of the API: reads what each document needs from the store, and has the document made of it.
 */

import type { Clock } from '../lib/clock.ts'
import { closestWord } from '../lib/closest-word.ts'
import { MeshError } from '../lib/errors.ts'
import { hostmeshVersion } from '../lib/version.ts'
import type { FleetDocuments, LiveEvent } from '../model/fleet.ts'
import { RECORD_SPAN_MS } from '../model/report.ts'
import { isoTime } from './documents/coverage.ts'
import { Fleet, type Moment } from './documents/fleet.ts'
import { graphDocument } from './documents/graph.ts'
import { historyDocument, type StepFigures, stepFigures } from './documents/history.ts'
import { hostDocument, hostsDocument } from './documents/hosts.ts'
import { overviewDocument, type StoreReading } from './documents/overview.ts'
import { sidesOf } from './documents/pairs.ts'
import { risksDocument } from './documents/risks.ts'
import { serviceDocument, servicesDocument } from './documents/services.ts'
import { versionsDocument } from './documents/versions.ts'
import type { FleetStore, Span } from './fleet-store.ts'
import type { Query } from './query.ts'

/** A record is stored at the latest so long after its end, when all is well. */
const STORED_AFTER_MS = 2_000

/** What a live view covers at least. */
const LIVE_MS = 1_000

/** Span of a document unless the query says otherwise, and of those that look for what does not happen. */
const WINDOW_MS = 60_000
const LONG_WINDOW_MS = 3_600_000

/** Steps of one history; more can not be told apart on a screen. */
const MAX_STEPS = 3_000

/** Steps that are read at once: without a filter each has all pairs of the fleet. */
const STEPS_AT_ONCE = { filtered: 120, all: 12 } as const

/** For documents in which it does not matter which host has counted. */
const ALL_HOSTS = { sumHosts: true } as const

const STEPS_MS = [10_000, 60_000, 3_600_000] as const

/** What the reader needs. */
export interface FleetReaderOptions {
  readonly store: FleetStore
  readonly clock: Clock
}

/** The functions that make the documents. */
type DocumentMakers = {
  readonly [Name in keyof FleetDocuments]: (
    query: never,
    signal: AbortSignal,
  ) => Promise<FleetDocuments[Name]>
}

/** Makes documents. Each method is a document of the API, and makes a new one at each call. */
export class FleetReader implements DocumentMakers {
  readonly #store: FleetStore
  readonly #clock: Clock

  constructor({ store, clock }: FleetReaderOptions) {
    this.#store = store
    this.#clock = clock
  }

  async overview(query: Query<'at' | 'window'>): Promise<FleetDocuments['overview']> {
    const { moment, status } = await this.#moment(query)
    const rows = await this.#store.pairs(moment.span, ALL_HOSTS)
    return overviewDocument(moment, rows, { version: hostmeshVersion, store: status })
  }

  async graph(query: Query<'at' | 'window' | 'group'>): Promise<FleetDocuments['graph']> {
    const { moment } = await this.#moment(query)
    const group = query.group ?? 'service'
    // Groups are made of hosts.
    const filter = group === 'service' ? ALL_HOSTS : {}
    return graphDocument(moment, await this.#store.pairs(moment.span, filter), group)
  }

  async services(query: Query<'at' | 'window'>): Promise<FleetDocuments['services']> {
    const { moment } = await this.#moment(query)
    return servicesDocument(moment, await this.#store.pairs(moment.span, ALL_HOSTS))
  }

  async service(query: Query<'name' | 'at' | 'window'>): Promise<FleetDocuments['service']> {
    const name = required(query.name, 'name')
    const { moment } = await this.#moment(query)
    const [inbound, outbound, workloads] = await Promise.all([
      this.#store.pairs(moment.span, { ...ALL_HOSTS, destination: name }),
      this.#store.pairs(moment.span, { ...ALL_HOSTS, source: name }),
      this.#store.workloads(moment.span),
    ])
    // What a service calls of itself is in both.
    const rows = [...inbound, ...outbound.filter(({ destination }) => destination !== name)]
    const document = serviceDocument(moment, { name, rows, workloads })
    if (document !== undefined) return document
    throw new MeshError('HM_SERVICE_NOT_FOUND', `No host has reported a service "${name}"`, {
      hint: didYouMean(name, [...new Fleet(moment).services], 'See /api/v1/services'),
    })
  }

  async hosts(query: Query<'at' | 'window'>): Promise<FleetDocuments['hosts']> {
    const { moment } = await this.#moment(query)
    return hostsDocument(moment, await this.#store.workloads(moment.span))
  }

  async host(query: Query<'name' | 'at' | 'window'>): Promise<FleetDocuments['host']> {
    const name = required(query.name, 'name')
    const { moment } = await this.#moment(query)
    const [rows, workloads, figures] = await Promise.all([
      this.#store.pairs(moment.span, { host: name }),
      this.#store.workloads(moment.span, name),
      this.#store.hostFigures(moment.span, name),
    ])
    const document = hostDocument(moment, { name, rows, workloads, figures })
    if (document !== undefined) return document
    const names = moment.hosts.map((host) => host.name)
    throw new MeshError('HM_HOST_NOT_FOUND', `No host "${name}" has ever reported`, {
      hint: didYouMean(name, names, 'See /api/v1/hosts'),
    })
  }

  async history(
    query: Query<'source' | 'destination' | 'host' | 'from' | 'to' | 'step'>,
    signal: AbortSignal,
  ): Promise<FleetDocuments['history']> {
    const { source, destination, host } = query
    const end = this.#endOf(query.to)
    const fromMs = query.from ?? end.toMs - LONG_WINDOW_MS
    if (fromMs >= end.toMs)
      throw invalidQuery('from: Must be before to, and before the last 10 s that are complete')
    const status = await this.#store.status()
    const stepMs = query.step ?? chosenStep({ fromMs, toMs: end.toMs }, status)
    const span = {
      fromMs: Math.floor(fromMs / stepMs) * stepMs,
      toMs: Math.ceil(end.toMs / stepMs) * stepMs,
    }
    if ((span.toMs - span.fromMs) / stepMs > MAX_STEPS)
      throw invalidQuery(`step: The span has more than ${MAX_STEPS} steps; take longer ones`)
    const { moment } = await this.#momentOf({ ...end, span }, status)
    const steps = await this.#steps({ ...span, stepMs }, { source, destination, host }, signal)
    return historyDocument(moment, steps, { stepMs, host })
  }

  async risks(query: Query<'at' | 'window'>): Promise<FleetDocuments['risks']> {
    const { moment } = await this.#moment({ window: LONG_WINDOW_MS, ...query })
    return risksDocument(moment, await this.#store.pairs(moment.span, ALL_HOSTS))
  }

  async versions(query: Query<'at' | 'window'>): Promise<FleetDocuments['versions']> {
    const { moment } = await this.#moment({ window: LONG_WINDOW_MS, ...query })
    return versionsDocument(moment, await this.#store.pairs(moment.span, ALL_HOSTS))
  }

  /** The graph of the last seconds. */
  async live(): Promise<LiveEvent> {
    const atMs = this.#clock.wallMs()
    const [hosts, status] = await Promise.all([this.#store.hosts(atMs), this.#store.status()])
    const { spanMs, pairs } = this.#store.livePairs(atMs)
    const span = { fromMs: atMs - Math.max(spanMs, LIVE_MS), toMs: atMs }
    // Live views are not stored: what there is of them is there.
    const oldestMs = hosts.length === 0 ? oldestOf(status) : span.fromMs
    const moment: Moment = { atMs, span, live: true, hosts, oldestMs }
    return {
      graph: graphDocument(moment, pairs, 'service'),
      hosts: new Fleet(moment).counts(),
    }
  }

  async #moment({
    at,
    window = WINDOW_MS,
  }: Query<'at' | 'window'>): Promise<{ moment: Moment; status: StoreReading }> {
    const end = this.#endOf(at)
    const span = { fromMs: end.toMs - roundUp(window), toMs: end.toMs }
    return this.#momentOf({ ...end, span }, await this.#store.status())
  }

  async #momentOf(
    { atMs, live, span }: Pick<Moment, 'atMs' | 'live' | 'span'>,
    status: StoreReading,
  ): Promise<{ moment: Moment; status: StoreReading }> {
    const hosts = await this.#store.hosts(atMs)
    return { moment: { atMs, span, live, hosts, oldestMs: oldestOf(status) }, status }
  }

  /** Where a span ends: at the asked time, or with the last 10 s whose records have come. */
  #endOf(at: number | undefined): Pick<Moment, 'atMs' | 'live'> & { readonly toMs: number } {
    const nowMs = this.#clock.wallMs()
    const lastMs = roundDown(nowMs - STORED_AFTER_MS)
    if (at === undefined) return { atMs: nowMs, live: true, toMs: lastMs }
    if (at > nowMs)
      throw invalidQuery(`${isoTime(at)} is in the future: here it is ${isoTime(nowMs)}`)
    const toMs = Math.min(roundDown(at), lastMs)
    return { atMs: toMs, live: false, toMs }
  }

  async #steps(
    { fromMs, toMs, stepMs }: Span & { readonly stepMs: number },
    filter: Query<'source' | 'destination' | 'host'>,
    signal: AbortSignal,
  ): Promise<StepFigures[]> {
    const sides = sidesOf(await this.#store.pairs({ fromMs, toMs }, { ...ALL_HOSTS, ...filter }))
    const isFiltered = Object.values(filter).some((value) => value !== undefined)
    const chunkMs = stepMs * STEPS_AT_ONCE[isFiltered ? 'filtered' : 'all']
    const figures = new Map<number, StepFigures>()
    for (let at = fromMs; at < toMs; at += chunkMs) {
      signal.throwIfAborted()
      const span = { fromMs: at, toMs: Math.min(at + chunkMs, toMs), stepMs }
      for (const step of await this.#store.history(span, { ...ALL_HOSTS, ...filter }))
        figures.set(step.atMs, stepFigures(step, stepMs, sides))
    }
    const count = Math.round((toMs - fromMs) / stepMs)
    return Array.from({ length: count }, (_, i) => {
      const atMs = fromMs + (i + 1) * stepMs
      return figures.get(atMs) ?? stepFigures({ atMs, pairs: [], reporting: 0 }, stepMs, sides)
    })
  }
}

/** The finest step whose tier has all of the span, and that does not give too many. */
function chosenStep({ fromMs, toMs }: Span, { oldestMs }: StoreReading): number {
  const oldest = [oldestMs.seconds, oldestMs.minutes, oldestMs.hours]
  const fitting = STEPS_MS.filter((ms) => (toMs - fromMs) / ms <= MAX_STEPS / 2)
  const covering = fitting.find((ms) => (oldest[STEPS_MS.indexOf(ms)] ?? Infinity) <= fromMs)
  return covering ?? fitting[0] ?? STEPS_MS[2]
}

function oldestOf({ oldestMs }: StoreReading): number | undefined {
  const known = Object.values(oldestMs).filter((ms) => ms !== undefined)
  return known.length === 0 ? undefined : Math.min(...known)
}

function roundDown(ms: number): number {
  return Math.floor(ms / RECORD_SPAN_MS) * RECORD_SPAN_MS
}

function roundUp(ms: number): number {
  return Math.ceil(ms / RECORD_SPAN_MS) * RECORD_SPAN_MS
}

function required(value: string | undefined, name: string): string {
  if (value !== undefined) return value
  throw invalidQuery(`${name}: Is missing`)
}

function invalidQuery(problem: string): MeshError {
  return new MeshError('HM_API_QUERY_INVALID', `Cannot answer: ${problem}`, {
    hint: 'The parameters of each path are in /api/v1/openapi.json',
  })
}

function didYouMean(name: string, names: readonly string[], otherwise: string): string {
  const meant = closestWord(name, names)
  return meant === undefined ? otherwise : `Did you mean ${meant}?`
}
