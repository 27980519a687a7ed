/**
 * The pairs of this host as a graph document, from two readings of the daemon's own metrics.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { GraphDocument, GraphEdge, Quantiles, Traffic } from '../model/fleet.ts'
import { failureFlags } from '../model/response-flag.ts'
import { fetchText } from './admin-client.ts'

/** Span of the first answer, milliseconds. */
const SPAN_MS = 1_000

const HISTOGRAMS = {
  connectMs: 'hostmesh_tcp_connect_duration_seconds_bucket',
  firstByteMs: 'hostmesh_tcp_first_byte_seconds_bucket',
  durationMs: 'hostmesh_tcp_connection_duration_seconds_bucket',
} as const

/** One sample of the exposition. */
interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

/** The samples of one pair, by name and the labels that are left, such as `…_closed_total DENY`. */
interface PairSamples {
  readonly reporter: 'source' | 'destination'
  readonly source: string
  readonly destination: string
  readonly values: Map<string, number>
}

/** A reading, with its time on the monotonic clock. */
export interface MetricsReading {
  readonly atMs: number
  readonly pairs: ReadonlyMap<string, PairSamples>
}

/** Asks the daemon of this host; each answer covers the time since the one before. */
export class HostEdges {
  readonly #address: string
  #last: MetricsReading | undefined

  constructor(address: string) {
    this.#address = address
  }

  /** The pairs that have connections, or had some. @throws MeshError as `fetchText` */
  async read(): Promise<GraphDocument> {
    if (this.#last === undefined) {
      this.#last = await this.#readMetrics()
      await delay(SPAN_MS)
    }
    const now = await this.#readMetrics()
    const graph = graphBetween(this.#last, now, new Date().toISOString())
    this.#last = now
    return graph
  }

  async #readMetrics(): Promise<MetricsReading> {
    const text = await fetchText(this.#address, '/metrics')
    return { atMs: performance.now(), pairs: readPairs(text) }
  }
}

/** The samples of pairs in Prometheus' text format. */
export function readPairs(text: string): ReadonlyMap<string, PairSamples> {
  const pairs = new Map<string, PairSamples>()
  for (const line of text.split('\n')) {
    const sample = line.startsWith('hostmesh_tcp_') ? parseSample(line) : undefined
    if (sample === undefined) continue
    const {
      reporter,
      source_service: source,
      destination_service: destination,
      ...rest
    } = sample.labels
    if (source === undefined || destination === undefined) continue
    if (reporter !== 'source' && reporter !== 'destination') continue
    const key = JSON.stringify([source, destination, reporter])
    const pair = pairs.get(key) ?? { reporter, source, destination, values: new Map() }
    pairs.set(key, pair)
    pair.values.set([sample.name, ...Object.values(rest)].join(' '), sample.value)
  }
  return pairs
}

/** What happened between two readings. The called side's figures are taken where this host has both. */
export function graphBetween(
  before: MetricsReading,
  now: MetricsReading,
  at: string,
): GraphDocument {
  const spanMs = Math.max(1, now.atMs - before.atMs)
  const edges = new Map<string, GraphEdge>()
  for (const [key, pair] of now.pairs) {
    const { source, destination, reporter } = pair
    const name = JSON.stringify([source, destination])
    if (edges.has(name) && reporter === 'source') continue
    const traffic = trafficOf(pair.values, before.pairs.get(key)?.values ?? new Map(), spanMs)
    edges.set(name, { source, destination, traffic, reporter, policy: null })
  }
  return {
    coverage: { at, windowMs: Math.round(spanMs), live: true, hosts: 1, reporting: 1, notes: [] },
    group: 'service',
    nodes: [],
    edges: [...edges.values()],
    omitted: 0,
  }
}

function trafficOf(
  now: ReadonlyMap<string, number>,
  before: ReadonlyMap<string, number>,
  spanMs: number,
): Traffic {
  // A daemon that was restarted counts from zero.
  const grown = (key: string): number => Math.max(0, (now.get(key) ?? 0) - (before.get(key) ?? 0))
  const perSecond = (name: string): number => (grown(name) * 1_000) / spanMs
  const closed: Record<string, number> = {}
  const prefix = 'hostmesh_tcp_connections_closed_total '
  for (const key of now.keys())
    if (key.startsWith(prefix) && grown(key) > 0) closed[key.slice(prefix.length)] = grown(key)
  const ended = Object.values(closed).reduce((sum, count) => sum + count, 0)
  const failed = Object.entries(closed).reduce(
    (sum, [flag, count]) => sum + (failureFlags.has(flag) ? count : 0),
    0,
  )
  const quantiles = (name: string): Quantiles | null =>
    quantilesOf(
      [...now.keys()]
        .filter((key) => key.startsWith(`${name} `))
        .map((key) => [key.slice(name.length + 1), grown(key)]),
    )
  return {
    openedPerSecond: perSecond('hostmesh_tcp_connections_opened_total'),
    active: now.get('hostmesh_tcp_connections_active') ?? 0,
    closed,
    errorShare: ended === 0 ? null : failed / ended,
    connectFailures: grown('hostmesh_tcp_connect_failures_total'),
    sentBytesPerSecond: perSecond('hostmesh_tcp_sent_bytes_total'),
    receivedBytesPerSecond: perSecond('hostmesh_tcp_received_bytes_total'),
    connectMs: quantiles(HISTOGRAMS.connectMs),
    firstByteMs: quantiles(HISTOGRAMS.firstByteMs),
    durationMs: quantiles(HISTOGRAMS.durationMs),
  }
}

/** @param buckets upper bound in seconds, and how many values are not above it; cumulative */
function quantilesOf(
  buckets: readonly (readonly [bound: string, count: number])[],
): Quantiles | null {
  const ascending = buckets
    .map(([bound, count]) => ({ bound: bound === '+Inf' ? Infinity : Number(bound), count }))
    .toSorted((a, b) => a.bound - b.bound)
  const total = ascending.at(-1)?.count ?? 0
  if (total === 0) return null
  const highest = ascending.findLast(({ bound }) => Number.isFinite(bound))?.bound ?? 0
  const at = (share: number): number => {
    const { bound } = ascending.find(({ count }) => count >= share * total) ?? { bound: Infinity }
    return (Number.isFinite(bound) ? bound : highest) * 1_000
  }
  return { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
}

function parseSample(line: string): Sample | undefined {
  const match = /^(\w+)\{(.*)\} (\S+)$/.exec(line)
  if (match === null) return undefined
  const [, name = '', list = '', value = ''] = match
  const labels: Record<string, string> = {}
  for (const [, key = '', text = ''] of list.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
    labels[key] = text.replaceAll(/\\(.)/g, (_, escaped: string) =>
      escaped === 'n' ? '\n' : escaped,
    )
  return { name, labels, value: Number(value) }
}
