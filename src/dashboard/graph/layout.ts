/**
 * Where the nodes of the graph stand: a layered layout, callers left of what they call. Pure: the same graph gives the
 * same picture, and a node that has a place keeps it.
 *
 * Layers by longest path, order by barycenters, heights by the mean of the neighbours (Sugiyama's steps).
 * docs/decisions/0015-dashboard.md says why this is not dagre.
 */
import { type Column, layeredOf, type Pair, type Vertex } from './layers.ts'

/** The centre of a node, in units of the picture. */
export interface Point {
  readonly x: number
  readonly y: number
}

/** A layout. */
export interface Layout {
  readonly places: ReadonlyMap<string, Point>
  /** Where edges pass between nodes of the layers that they cross, by `source\0destination`. */
  readonly routes: ReadonlyMap<string, readonly Point[]>
}

/** Distance of two columns and of two rows, centre to centre. */
const COLUMN = 272
const ROW = 56
/** Height that a passing edge takes. */
const PASS = 20

const HEIGHT_SWEEPS = 12
/** Between the nodes of two columns. */
const LANE = 80

/** Places for all nodes. */
export function arrange(ids: readonly string[], pairs: readonly Pair[]): Layout {
  const places = new Map<string, Point>()
  const routes = new Map<string, readonly Point[]>()
  const shelf = new Shelf(ids.length)
  for (const members of componentsOf(ids, pairs)) {
    const inside = new Set(members)
    const own = pairs.filter(([source]) => inside.has(source))
    const part = arrangeConnected(members, own)
    const move = shelf.add(part.places)
    for (const [id, place] of part.places) places.set(id, move(place))
    for (const [key, points] of part.routes) routes.set(key, points.map(move))
  }
  return { places, routes }
}

/** The places that are known, and one for each node that has none: near its neighbours, where there is room. */
export function extend(known: Layout, ids: readonly string[], pairs: readonly Pair[]): Layout {
  if (known.places.size === 0) return arrange(ids, pairs)
  const places = new Map(known.places)
  for (const id of ids.filter((one) => !places.has(one)).toSorted()) {
    const bottom = Math.max(0, ...Array.from(places.values(), ({ y }) => y)) + ROW
    const wanted = wantedPlace(id, places, pairs) ?? { x: 0, y: bottom }
    places.set(id, freePlace(wanted, [...places.values()]))
  }
  return { places, routes: known.routes }
}

function wantedPlace(
  id: string,
  places: ReadonlyMap<string, Point>,
  pairs: readonly Pair[],
): Point | undefined {
  const near: Point[] = []
  for (const [source, destination] of pairs) {
    const other = source === id ? destination : destination === id ? source : undefined
    const place = other === undefined ? undefined : places.get(other)
    if (place !== undefined)
      near.push({ x: place.x + (source === id ? -COLUMN : COLUMN), y: place.y })
  }
  if (near.length === 0) return undefined
  const x = Math.max(...near.map((place) => place.x))
  return { x, y: near.reduce((sum, place) => sum + place.y, 0) / near.length }
}

/** The nearest place above or below that does not touch another node. */
function freePlace({ x, y }: Point, taken: readonly Point[]): Point {
  const near = taken.filter((other) => Math.abs(other.x - x) < COLUMN - LANE)
  // Each node in the way spoils at most three rows.
  for (let step = 0; step <= 6 * near.length; step += 1) {
    const rows = step % 2 === 0 ? step / 2 : -(step + 1) / 2
    const height = Math.round(y + rows * ROW)
    if (near.every((other) => Math.abs(other.y - height) >= ROW - 8)) return { x, y: height }
  }
  return { x, y: Math.max(...near.map((other) => other.y)) + ROW }
}

/** Connected parts, the largest first. */
function componentsOf(ids: readonly string[], pairs: readonly Pair[]): string[][] {
  const neighbours = new Map<string, string[]>(ids.toSorted().map((id) => [id, []]))
  for (const [source, destination] of pairs) {
    neighbours.get(source)?.push(destination)
    neighbours.get(destination)?.push(source)
  }
  const seen = new Set<string>()
  const found: string[][] = []
  for (const start of neighbours.keys()) {
    if (seen.has(start)) continue
    const members = [start]
    seen.add(start)
    for (const member of members)
      for (const next of neighbours.get(member) ?? [])
        if (!seen.has(next) && neighbours.has(next)) {
          seen.add(next)
          members.push(next)
        }
    found.push(members)
  }
  return found.toSorted((a, b) => b.length - a.length)
}

/** Puts parts beside and below each other. */
class Shelf {
  readonly #limit: number
  #x = 0
  #y = 0
  #height = 0
  #width = 0

  constructor(nodes: number) {
    this.#limit = COLUMN * Math.max(4, Math.ceil(Math.sqrt(nodes)))
  }

  /** Takes room for a part and returns how its points are moved there. */
  add(part: ReadonlyMap<string, Point>): (point: Point) => Point {
    const xs = Array.from(part.values(), ({ x }) => x)
    const ys = Array.from(part.values(), ({ y }) => y)
    const left = Math.min(...xs)
    const top = Math.min(...ys)
    const width = Math.max(...xs) - left + COLUMN
    const height = Math.max(...ys) - top + ROW
    if (this.#x > 0 && this.#x + width > Math.max(this.#limit, this.#width)) {
      this.#y += this.#height
      this.#x = 0
      this.#height = 0
    }
    const [dx, dy] = [this.#x - left, this.#y - top]
    this.#x += width
    this.#width = Math.max(this.#width, this.#x)
    this.#height = Math.max(this.#height, height + ROW / 2)
    return ({ x, y }) => ({ x: x + dx, y: Math.round(y + dy) })
  }
}

function arrangeConnected(ids: readonly string[], pairs: readonly Pair[]): Layout {
  const { columns, vertices, passes } = layeredOf(ids, pairs)
  for (const [index, column] of columns.entries()) {
    let y = -heightOf(column) / 2
    for (const vertex of column) {
      vertex.x = index * COLUMN
      vertex.y = y + sizeOf(vertex) / 2
      y += sizeOf(vertex)
    }
  }
  for (let sweep = 0; sweep < HEIGHT_SWEEPS; sweep += 1)
    for (const column of sweep % 2 === 0 ? columns : columns.toReversed()) spread(column)
  return {
    places: new Map(vertices.map(({ id, x, y }) => [id, { x, y }])),
    routes: new Map(
      Array.from(passes, ([key, points]) => [key, points.map(({ x, y }) => ({ x, y }))]),
    ),
  }
}

function sizeOf({ isPass }: Vertex): number {
  return isPass ? PASS : ROW
}

function heightOf(column: Column): number {
  return column.reduce((sum, vertex) => sum + sizeOf(vertex), 0)
}

/** Moves the vertices of a column towards the mean height of their neighbours, without changing their order. */
function spread(column: Column): void {
  // Vertices that would come too close move as one block (pool adjacent violators).
  const blocks: { sum: number; weight: number; count: number }[] = []
  const offsets: number[] = []
  let offset = 0
  for (const vertex of column) {
    offset += sizeOf(vertex) / 2
    offsets.push(offset)
    // A passing edge is to be straight: it weighs more.
    const weight = vertex.isPass ? 3 : 1
    let block = { sum: (wantedHeight(vertex) - offset) * weight, weight, count: 1 }
    for (
      let last = blocks.at(-1);
      last !== undefined && last.sum / last.weight > block.sum / block.weight;
      last = blocks.at(-1)
    ) {
      block = {
        sum: block.sum + last.sum,
        weight: block.weight + last.weight,
        count: block.count + last.count,
      }
      blocks.pop()
    }
    blocks.push(block)
    offset += sizeOf(vertex) / 2
  }
  let index = 0
  for (const { sum, weight, count } of blocks)
    for (const end = index + count; index < end; index += 1) {
      const vertex = column[index]
      if (vertex !== undefined) vertex.y = sum / weight + (offsets[index] ?? 0)
    }
}

function wantedHeight({ before, after, y }: Vertex): number {
  const count = before.length + after.length
  if (count === 0) return y
  let sum = 0
  for (const vertex of before) sum += vertex.y
  for (const vertex of after) sum += vertex.y
  return sum / count
}
