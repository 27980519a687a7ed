/**
 * What of a graph is shown and how: filters, colours, widths, words. Pure: from a document and a view to what the
 * picture, the table and the SVG file draw.
 */
import type { GraphDocument, GraphEdge, GraphNode, Traffic } from '../../model/fleet.ts'
import { formatByteRate, formatLatency, formatRate, formatShare } from '../format.ts'

/** What the colour of an edge says. */
export const colourings = ['health', 'policy', 'latency'] as const
/** What is written at an edge. */
export const labellings = ['traffic', 'errors', 'latency', 'bytes', 'none'] as const

/** One of {@link colourings}. */
export type Colouring = (typeof colourings)[number]
/** One of {@link labellings}. */
export type Labelling = (typeof labellings)[number]

/** Classes of edges; the style sheet and the SVG file give each its colour. */
export type EdgeClass =
  | 'ok'
  | 'warn'
  | 'bad'
  | 'deny'
  | 'idle'
  | 'unknown'
  | 'rule'
  | 'default'
  | 'slow1'
  | 'slow2'
  | 'slow3'

/** What the reader wants to see. */
export interface SceneOptions {
  readonly colouring: Colouring
  readonly labelling: Labelling
  /** Words, each part of a name to hide; with `*` a whole name. */
  readonly hide: string
  readonly only: Only
}

/** Which edges are shown. */
export type Only = 'all' | 'active' | 'problems' | 'denied'

/** An edge as it is drawn. */
export interface SceneEdge {
  readonly key: string
  readonly edge: GraphEdge
  readonly kind: EdgeClass
  /** 0 to 4: the decade of its traffic. */
  readonly weight: number
  readonly label: string
}

/** A node as it is drawn. */
export interface SceneNode {
  readonly node: GraphNode
  readonly detail: string
}

/** All that is drawn. */
export interface Scene {
  readonly nodes: readonly SceneNode[]
  readonly edges: readonly SceneEdge[]
  /** Nodes and edges that the reader has hidden. */
  readonly hidden: number
}

/** Above this share of failed connections an edge is red, and above the other amber. */
const BAD_SHARE = 0.05
const WARN_SHARE = 0.005
/** Steps of the latency colours, p99 of the first byte (else of connecting), milliseconds. */
const LATENCY_STEPS_MS = [10, 100, 1_000] as const

/** Identifies an edge. */
export function edgeKey(edge: { readonly source: string; readonly destination: string }): string {
  return `${edge.source}\u0000${edge.destination}`
}

/** Whether anything happened on an edge. */
export function isActive({ openedPerSecond, active }: Traffic): boolean {
  return openedPerSecond > 0 || active > 0
}

/** Connections that a policy refused in the span. */
export function deniedOf({ closed }: Traffic): number {
  return closed['DENY'] ?? 0
}

/** The latency that is shown for traffic: p99 until the first byte, else until connected. */
function latencyOf({ firstByteMs, connectMs }: Traffic): number | null {
  return firstByteMs?.p99 ?? connectMs?.p99 ?? null
}

/** How an edge does. */
export function healthOf({ traffic, policy }: GraphEdge): EdgeClass {
  if (deniedOf(traffic) > 0 || policy?.allow === false) return 'deny'
  if (!isActive(traffic) && traffic.errorShare === null) return 'idle'
  const share = traffic.errorShare ?? 0
  return share >= BAD_SHARE ? 'bad' : share >= WARN_SHARE ? 'warn' : 'ok'
}

/** The document as the reader wants to see it. */
export function makeScene(document: GraphDocument, options: SceneOptions): Scene {
  const isHidden = hiddenBy(options.hide)
  const nodes = document.nodes.filter(({ id }) => !isHidden(id))
  const shown = new Set(nodes.map(({ id }) => id))
  const edges = document.edges.filter(
    (edge) => shown.has(edge.source) && shown.has(edge.destination) && passes(edge, options.only),
  )
  const linked = new Set(edges.flatMap(({ source, destination }) => [source, destination]))
  const left = options.only === 'all' ? nodes : nodes.filter(({ id }) => linked.has(id))
  const inbound = inboundRates(edges)
  return {
    nodes: left.map((node) => ({ node, detail: detailOf(node, document, inbound) })),
    edges: edges.map((edge) => ({
      key: edgeKey(edge),
      edge,
      kind: classOf(edge, options.colouring),
      weight: weightOf(edge.traffic),
      label: labelOf(edge.traffic, options.labelling),
    })),
    hidden: document.nodes.length - left.length + document.edges.length - edges.length,
  }
}

/**
 * What was seen over a longer span with the figures of the last seconds: a pair that is not among these is idle, and does
 * not vanish.
 */
export function merged(base: GraphDocument | null, live: GraphDocument): GraphDocument {
  if (base === null) return live
  const nodes = new Map(base.nodes.map((node) => [node.id, node]))
  for (const node of live.nodes) nodes.set(node.id, node)
  const edges = new Map<string, GraphEdge>()
  for (const edge of base.edges) edges.set(edgeKey(edge), { ...edge, traffic: QUIET })
  for (const edge of live.edges) {
    const key = edgeKey(edge)
    edges.set(
      key,
      edge.policy === null ? { ...edge, policy: edges.get(key)?.policy ?? null } : edge,
    )
  }
  return { ...live, nodes: [...nodes.values()], edges: [...edges.values()] }
}

const QUIET: Traffic = {
  openedPerSecond: 0,
  active: 0,
  closed: {},
  errorShare: null,
  connectFailures: 0,
  sentBytesPerSecond: 0,
  receivedBytesPerSecond: 0,
  connectMs: null,
  firstByteMs: null,
  durationMs: null,
}

/** The names that a find text means, in alphabetical order. */
export function found(nodes: readonly SceneNode[], text: string): string[] {
  const wanted = text.trim().toLowerCase()
  if (wanted === '') return []
  return nodes
    .map(({ node }) => node.id)
    .filter((id) => id.toLowerCase().includes(wanted))
    .toSorted()
}

/** In words, for the reader of a screen and for tooltips. */
export function policyText({ policy }: GraphEdge): string {
  if (policy === null) return 'not reported'
  const verb = policy.allow ? 'allow' : 'deny'
  return policy.rule === null ? `${verb} (default)` : verb
}

function hiddenBy(text: string): (id: string) => boolean {
  const words = text
    .toLowerCase()
    .split(/[\s,]+/)
    .filter((word) => word !== '')
  if (words.length === 0) return () => false
  return (id) => words.some((word) => matches(id.toLowerCase(), word))
}

function matches(id: string, word: string): boolean {
  if (!word.includes('*')) return id.includes(word)
  const parts = word.split('*')
  let from = 0
  for (const [index, part] of parts.entries()) {
    const at = index === 0 ? (id.startsWith(part) ? 0 : -1) : id.indexOf(part, from)
    if (at < 0) return false
    from = at + part.length
  }
  return id.endsWith(parts.at(-1) ?? '')
}

function passes(edge: GraphEdge, only: Only): boolean {
  if (only === 'all') return true
  if (only === 'active') return isActive(edge.traffic)
  const health = healthOf(edge)
  if (only === 'denied') return health === 'deny'
  return health === 'deny' || health === 'bad' || health === 'warn'
}

function classOf(edge: GraphEdge, colouring: Colouring): EdgeClass {
  if (colouring === 'health') return healthOf(edge)
  if (colouring === 'policy') {
    if (edge.policy === null) return 'unknown'
    if (!edge.policy.allow) return 'deny'
    return edge.policy.rule === null ? 'default' : 'rule'
  }
  const latency = latencyOf(edge.traffic)
  if (latency === null) return 'unknown'
  const step = LATENCY_STEPS_MS.filter((ms) => latency >= ms).length
  return (['ok', 'slow1', 'slow2', 'slow3'] as const)[step] ?? 'slow3'
}

function weightOf({ openedPerSecond, active }: Traffic): number {
  const rate = Math.max(openedPerSecond, active / 100)
  return rate < 0.1 ? 0 : Math.min(4, 1 + Math.floor(Math.log10(rate * 10) / 1.25))
}

function labelOf(traffic: Traffic, labelling: Labelling): string {
  if (!isActive(traffic) && deniedOf(traffic) > 0) return labelling === 'none' ? '' : 'denied'
  if (!isActive(traffic) && traffic.errorShare === null) return ''
  switch (labelling) {
    case 'traffic':
      return formatRate(traffic.openedPerSecond)
    case 'errors':
      return formatShare(traffic.errorShare)
    case 'latency':
      return formatLatency(latencyOf(traffic))
    case 'bytes':
      return formatByteRate(traffic.sentBytesPerSecond + traffic.receivedBytesPerSecond)
    case 'none':
      return ''
  }
}

function inboundRates(edges: readonly GraphEdge[]): ReadonlyMap<string, number> {
  const rates = new Map<string, number>()
  for (const { destination, traffic } of edges)
    rates.set(destination, (rates.get(destination) ?? 0) + traffic.openedPerSecond)
  return rates
}

function detailOf(
  node: GraphNode,
  { group }: GraphDocument,
  inbound: ReadonlyMap<string, number>,
): string {
  const unit = group === 'service' ? 'inst' : 'svc'
  const rate = inbound.get(node.id)
  return `${node.instances} ${unit}${rate === undefined ? '' : ` · ${formatRate(rate)} in`}`
}
