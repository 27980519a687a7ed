/**
 * Lines of the graph: the curve of an edge, where its label stands, and which edge is near a point. Pure.
 */
import type { Layout, Point } from './layout.ts'
import type { Scene, SceneEdge } from './scene.ts'

/** Size of a node. */
export const NODE_WIDTH = 168
export const NODE_HEIGHT = 40

/** The curve of one edge. */
export interface Curve {
  readonly edge: SceneEdge
  /** As SVG writes it. */
  readonly path: string
  /** The head of the arrow. */
  readonly head: string
  readonly cubics: readonly Cubic[]
}

/** A rectangle. */
export interface Box {
  readonly x: number
  readonly y: number
  readonly width: number
  readonly height: number
}

/** Four points of a cubic curve. */
type Cubic = readonly [Point, Point, Point, Point]

const HEAD_LENGTH = 9
const HEAD_HALF = 4
const SAMPLE_LENGTH = 12
const CELL = 48
/** Room that a label takes, whatever its text: so that it stays where it is. */
const LABEL_WIDTH = 50
const LABEL_HEIGHT = 14
/** Places on a curve that are tried for its label: the middle first. */
const LABEL_PLACES = [0.5, 0.42, 0.58, 0.34, 0.66, 0.26, 0.74, 0.18, 0.82]

/** Curves by key of their edge; edges without a place are left out. */
export function curvesOf(scene: Scene, layout: Layout): Map<string, Curve> {
  const curves = new Map<string, Curve>()
  for (const edge of scene.edges) {
    const cubics = cubicsOf(edge, layout)
    const end = cubics.at(-1)?.[3]
    const start = cubics[0]?.[0]
    if (end === undefined || start === undefined) continue
    const bends = cubics.map(([, b, c, d]) => {
      // The line ends inside of the head.
      const to = d === end ? { x: d.x - HEAD_LENGTH + 1, y: d.y } : d
      return `C${text(b)} ${text(c)} ${text(to)}`
    })
    const head = `M${text(end)}l${-HEAD_LENGTH} ${-HEAD_HALF}v${2 * HEAD_HALF}z`
    curves.set(edge.key, { edge, path: `M${text(start)}${bends.join('')}`, head, cubics })
  }
  return curves
}

/** Where labels stand, by key of their edge: beside nodes and other labels. Those that find no room are left out. */
export function labelPlaces(
  scene: Scene,
  layout: Layout,
  curves: ReadonlyMap<string, Curve>,
): Map<string, Point> {
  const taken: Box[] = scene.nodes.flatMap(({ node }) => {
    const place = layout.places.get(node.id)
    return place === undefined ? [] : [boxAround(place, NODE_WIDTH, NODE_HEIGHT)]
  })
  const found = new Map<string, Point>()
  for (const [key, { cubics }] of curves) {
    for (const share of LABEL_PLACES) {
      const index = Math.min(cubics.length - 1, Math.floor(share * cubics.length))
      const cubic = cubics[index]
      if (cubic === undefined) continue
      const point = pointAt(cubic, share * cubics.length - index)
      const box = boxAround(point, LABEL_WIDTH, LABEL_HEIGHT)
      if (taken.some((other) => overlap(box, other))) continue
      taken.push(box)
      found.set(key, point)
      break
    }
  }
  return found
}

/** The middle of a curve. */
export function middleOf({ cubics }: Curve): Point {
  const middle = cubics[Math.floor(cubics.length / 2)]
  return middle === undefined ? { x: 0, y: 0 } : pointAt(middle, cubics.length % 2 === 1 ? 0.5 : 0)
}

/** What all nodes take up; null without nodes. */
export function boundsOf(scene: Scene, { places }: Layout): Box | null {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity]
  for (const { node } of scene.nodes) {
    const place = places.get(node.id)
    if (place === undefined) continue
    left = Math.min(left, place.x - NODE_WIDTH / 2)
    right = Math.max(right, place.x + NODE_WIDTH / 2)
    top = Math.min(top, place.y - NODE_HEIGHT / 2)
    bottom = Math.max(bottom, place.y + NODE_HEIGHT / 2)
  }
  return left > right ? null : { x: left, y: top, width: right - left, height: bottom - top }
}

/** Finds the edge next to a point: first the edges that come near, by a grid of cells, then the nearest of them. */
export class NearestEdge {
  readonly #curves: readonly Curve[]
  /** Positions in `#curves`; one may be there several times. */
  readonly #cells = new Map<number, number[]>()

  constructor(curves: ReadonlyMap<string, Curve>) {
    this.#curves = [...curves.values()]
    for (const [index, { cubics }] of this.#curves.entries())
      for (const cubic of cubics) {
        const samples = samplesOf(cubic, CELL)
        for (let step = 0; step <= samples; step += 1) {
          const { x, y } = pointAt(cubic, step / samples)
          const cell = cellAt(x, y)
          const found = this.#cells.get(cell)
          if (found === undefined) this.#cells.set(cell, [index])
          else if (found.at(-1) !== index) found.push(index)
        }
      }
  }

  /** The key of the nearest edge within `reach`, at most the size of a cell; null without one. */
  find({ x, y }: Point, reach: number): string | null {
    const near = new Set<number>()
    for (const dx of [-CELL, 0, CELL])
      for (const dy of [-CELL, 0, CELL])
        for (const index of this.#cells.get(cellAt(x + dx, y + dy)) ?? []) near.add(index)
    let best: string | null = null
    let least = Math.min(reach, CELL) ** 2
    const step = Math.max(2, Math.min(reach, SAMPLE_LENGTH))
    for (const index of near) {
      const curve = this.#curves[index]
      if (curve === undefined) continue
      const square = squareDistance(curve, x, y, step)
      if (square < least) [least, best] = [square, curve.edge.key]
    }
    return best
  }
}

function samplesOf([a, , , d]: Cubic, length: number): number {
  return Math.ceil((Math.abs(d.x - a.x) + Math.abs(d.y - a.y)) / length) + 2
}

function squareDistance({ cubics }: Curve, x: number, y: number, length: number): number {
  let least = Infinity
  for (const cubic of cubics) {
    const samples = samplesOf(cubic, length)
    for (let step = 0; step <= samples; step += 1) {
      const point = pointAt(cubic, step / samples)
      least = Math.min(least, (point.x - x) ** 2 + (point.y - y) ** 2)
    }
  }
  return least
}

function cellAt(x: number, y: number): number {
  return Math.floor(x / CELL) * 1_000_003 + Math.floor(y / CELL)
}

function cubicsOf(edge: SceneEdge, { places, routes }: Layout): Cubic[] {
  const from = places.get(edge.edge.source)
  const to = places.get(edge.edge.destination)
  if (from === undefined || to === undefined) return []
  const start = { x: from.x + NODE_WIDTH / 2, y: from.y }
  const end = { x: to.x - NODE_WIDTH / 2, y: to.y }
  if (end.x <= start.x) return [around(start, end)]
  // Straight through each layer that it passes, bent between them.
  const stops = [start]
  for (const { x, y } of routes.get(edge.key) ?? [])
    stops.push({ x: x - NODE_WIDTH / 2, y }, { x: x + NODE_WIDTH / 2, y })
  stops.push(end)
  const cubics: Cubic[] = []
  for (const [index, stop] of stops.entries()) {
    const next = stops[index + 1]
    if (next === undefined) continue
    const gap = next.x - stop.x
    const bend = stop.y === next.y ? gap / 3 : Math.max(28, gap * 0.45)
    cubics.push([stop, { x: stop.x + bend, y: stop.y }, { x: next.x - bend, y: next.y }, next])
  }
  return cubics
}

/** Backwards, or to itself: around the nodes, below them. */
function around(start: Point, end: Point): Cubic {
  const back = start.x - end.x
  const bend = 56 + Math.min(120, back * 0.1)
  const dip = Math.min(180, 50 + back * 0.12)
  const low = Math.max(start.y, end.y) + dip
  return [start, { x: start.x + bend, y: low }, { x: end.x - bend, y: low }, end]
}

function pointAt([a, b, c, d]: Cubic, t: number): Point {
  const s = 1 - t
  const [p, q, r, u] = [s * s * s, 3 * s * s * t, 3 * s * t * t, t * t * t]
  return {
    x: p * a.x + q * b.x + r * c.x + u * d.x,
    y: p * a.y + q * b.y + r * c.y + u * d.y,
  }
}

function boxAround({ x, y }: Point, width: number, height: number): Box {
  return { x: x - width / 2, y: y - height / 2, width, height }
}

function overlap(a: Box, b: Box): boolean {
  return (
    Math.abs(2 * (a.x - b.x) + a.width - b.width) < a.width + b.width &&
    Math.abs(2 * (a.y - b.y) + a.height - b.height) < a.height + b.height
  )
}

function text({ x, y }: Point): string {
  return `${Math.round(x * 10) / 10} ${Math.round(y * 10) / 10}`
}
