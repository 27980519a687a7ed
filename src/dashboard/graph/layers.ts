/**
 * Layers of a graph and the order within them: who stands in which column, above whom. Pure.
 *
 * Which way a cycle is broken, and the layers of a graph that has none of its own, follow from trophic levels (MacKay,
 * Johnson, Sansom: How directed is a directed network?): the heights at which edges rise by one on average.
 */

/** Who calls whom: names of nodes. */
export type Pair = readonly [source: string, destination: string]

/** A node, or a place where an edge passes a layer, while it is being placed. */
export interface Vertex {
  readonly id: string
  readonly isPass: boolean
  before: Vertex[]
  after: Vertex[]
  level: number
  layer: number
  /** Position in the layer, 0 to 1. */
  rank: number
  x: number
  y: number
}

/** From top to bottom. */
export type Column = readonly Vertex[]

/** What is found. */
export interface Layered {
  readonly columns: readonly Column[]
  /** The nodes. */
  readonly vertices: readonly Vertex[]
  /** Where an edge passes the layers that it crosses, by `source\0destination`, from the source on. */
  readonly passes: ReadonlyMap<string, readonly Vertex[]>
}

const ORDER_SWEEPS = 12
const LEVEL_SWEEPS = 80
/** A graph whose edges cross more layers in all is drawn with edges behind its nodes. */
const MOST_PASSES = 250
const FEW_LAYERS = 8
/** A graph with fewer levels than this has no tiers. */
const FLAT_HEIGHT = 3

/** Columns of a connected graph. */
export function layeredOf(ids: readonly string[], pairs: readonly Pair[]): Layered {
  const vertexOf = new Map<string, Vertex>(
    ids.toSorted().map((id): [string, Vertex] => [id, makeVertex(id, false)]),
  )
  const edges = pairs.flatMap(([source, destination]): Edge[] => {
    const [from, to] = [vertexOf.get(source), vertexOf.get(destination)]
    return from === undefined || to === undefined || from === to ? [] : [{ from, to }]
  })
  const vertices = [...vertexOf.values()]
  findLevels(vertices, edges)
  const rising = edges.map(({ from, to }) =>
    isBelow(from, to) ? { from, to, isTurned: false } : { from: to, to: from, isTurned: true },
  )
  findLayers(vertices, rising)
  const passes = addPasses(rising)
  const layers: Vertex[][] = []
  for (const vertex of [...vertices, ...passes.values().flatMap((list) => list)])
    (layers[vertex.layer] ??= []).push(vertex)
  const ordered = orderLayers(Array.from(layers, (layer) => layer ?? []))
  return { columns: columnsOf(ordered, vertices.length), vertices, passes }
}

interface Edge {
  readonly from: Vertex
  readonly to: Vertex
}

interface RisingEdge extends Edge {
  /** Whether the call goes the other way: the edge would close a cycle. */
  readonly isTurned: boolean
}

function makeVertex(id: string, isPass: boolean): Vertex {
  return { id, isPass, before: [], after: [], level: 0, layer: 0, rank: 0, x: 0, y: 0 }
}

function isBelow(a: Vertex, b: Vertex): boolean {
  return a.level < b.level || (a.level === b.level && a.id < b.id)
}

/** Levels such that edges rise by one on average: Gauss-Seidel on the least squares. */
function findLevels(vertices: readonly Vertex[], edges: readonly Edge[]): void {
  for (const { from, to } of edges) {
    from.after.push(to)
    to.before.push(from)
  }
  for (let sweep = 0; sweep < LEVEL_SWEEPS; sweep += 1)
    for (const vertex of sweep % 2 === 0 ? vertices : vertices.toReversed()) {
      const count = vertex.before.length + vertex.after.length
      if (count === 0) continue
      let sum = 0
      for (const { level } of vertex.before) sum += level + 1
      for (const { level } of vertex.after) sum += level - 1
      vertex.level = sum / count
    }
}

/** Layers by longest path; where that is a long chain through a tangle, by level. */
function findLayers(vertices: readonly Vertex[], edges: readonly RisingEdge[]): void {
  for (const vertex of vertices) {
    vertex.before = []
    vertex.after = []
  }
  for (const { from, to } of edges) {
    from.after.push(to)
    to.before.push(from)
  }
  const rising = vertices.toSorted((a, b) => (isBelow(a, b) ? -1 : 1))
  for (const vertex of rising)
    vertex.layer = vertex.before.reduce((most, { layer }) => Math.max(most, layer + 1), 0)
  // A caller that nobody calls stands right before the first that it calls.
  for (const vertex of rising.toReversed())
    if (vertex.before.length === 0 && vertex.after.length > 0)
      vertex.layer = Math.min(...vertex.after.map(({ layer }) => layer)) - 1
  const lowest = rising[0]?.level ?? 0
  const height = (rising.at(-1)?.level ?? 0) - lowest
  const layers = Math.max(...vertices.map(({ layer }) => layer))
  if (layers <= Math.max(FEW_LAYERS, 2 * height + 3)) return
  // A tangle has hardly any levels: stretched, so that few edges stay within a layer.
  const stretch = Math.max(1, Math.sqrt(vertices.length) / Math.max(height, 0.01))
  for (const vertex of vertices)
    vertex.layer = Math.round((vertex.level - lowest) * (height < FLAT_HEIGHT ? stretch : 1))
}

/** Puts a vertex into each layer that an edge crosses, unless that were too many. */
function addPasses(edges: readonly RisingEdge[]): Map<string, Vertex[]> {
  const long = edges.filter(({ from, to }) => to.layer - from.layer > 1)
  const count = long.reduce((sum, { from, to }) => sum + to.layer - from.layer - 1, 0)
  const passes = new Map<string, Vertex[]>()
  if (count > MOST_PASSES) return passes
  for (const { from, to, isTurned } of long) {
    const chain: Vertex[] = []
    for (let layer = from.layer + 1; layer < to.layer; layer += 1) {
      const pass = makeVertex(`${from.id}\u0000${to.id}`, true)
      pass.layer = layer
      chain.push(pass)
    }
    link([from, ...chain, to])
    // A call against the layers is drawn around the nodes, not through them.
    if (!isTurned) passes.set(`${from.id}\u0000${to.id}`, chain)
  }
  return passes
}

/** Makes the vertices neighbours, in place of the first and the last one. */
function link(chain: readonly Vertex[]): void {
  const [first, last] = [chain[0], chain.at(-1)]
  if (first === undefined || last === undefined) return
  first.after.splice(first.after.indexOf(last), 1)
  last.before.splice(last.before.indexOf(first), 1)
  for (const [index, vertex] of chain.entries()) {
    const next = chain[index + 1]
    if (next === undefined) continue
    vertex.after.push(next)
    next.before.push(vertex)
  }
}

function orderLayers(layers: readonly Vertex[][]): Vertex[][] {
  const sorted = [...layers]
  for (const layer of sorted) rank(layer)
  for (let sweep = 0; sweep < ORDER_SWEEPS; sweep += 1) {
    const isDown = sweep % 2 === 0
    const indexes = [...sorted.keys()]
    for (const index of isDown ? indexes : indexes.toReversed()) {
      const layer = (sorted[index] ?? []).map((vertex) => ({
        vertex,
        key: barycenter(vertex, isDown ? vertex.before : vertex.after),
      }))
      sorted[index] = layer.toSorted((a, b) => a.key - b.key).map(({ vertex }) => vertex)
      rank(sorted[index])
    }
  }
  return sorted
}

function rank(layer: readonly Vertex[]): void {
  for (const [index, vertex] of layer.entries()) vertex.rank = (index + 0.5) / layer.length
}

/** The mean position of the neighbours; nearer layers weigh more. */
function barycenter(vertex: Vertex, neighbours: readonly Vertex[]): number {
  let sum = 0
  let weights = 0
  for (const { layer, rank: position } of neighbours) {
    const weight = 1 / Math.max(1, Math.abs(layer - vertex.layer))
    sum += position * weight
    weights += weight
  }
  return weights === 0 ? vertex.rank : sum / weights
}

/** A layer that is too high becomes several columns. */
function columnsOf(layers: readonly Vertex[][], nodes: number): Vertex[][] {
  const limit = Math.max(10, Math.ceil(Math.sqrt(nodes * 4)))
  return layers.flatMap((layer) => {
    const count = Math.max(1, Math.ceil(layer.filter(({ isPass }) => !isPass).length / limit))
    return Array.from({ length: count }, (_, part) =>
      layer.filter((_vertex, index) => index % count === part),
    )
  })
}
