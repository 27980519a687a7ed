/**
 * The picture of the graph: layers of SVG, with few elements however many edges there are. Edges of one colour and width
 * are one path; what is pointed at is drawn once more in the layer above the others, which are dimmed as they are.
 */
import { type ReadonlySignal, type Signal, useSignal } from '@preact/signals'
import type { ComponentChild, RefObject } from 'preact'
import { useEffect, useLayoutEffect, useMemo, useRef } from 'preact/hooks'

import { shorten } from '../format.ts'
import { Camera, type Pose } from './camera.ts'
import {
  type Box,
  boundsOf,
  type Curve,
  curvesOf,
  labelPlaces,
  middleOf,
  NearestEdge,
  NODE_HEIGHT,
  NODE_WIDTH,
} from './geometry.ts'
import type { Layout, Point } from './layout.ts'
import type { Scene, SceneNode } from './scene.ts'
import { edgesOf, nodesOf, type Selection } from './selection.ts'
import { MOST_LABELS } from './svg-file.ts'

const NAME_LENGTH = 19
const AROUND = 240
const INDEX_DELAY_MS = 150
/** More edges than this are drawn paler, so that nodes stand out. */
const MANY_EDGES = 300

/** What the picture shows, and whom it tells. */
export interface PictureProps {
  readonly scene: Scene
  readonly layout: Layout
  readonly selection: Selection
  readonly found: ReadonlySet<string>
  /** Where the camera is to be; null: all is to be seen. */
  readonly pose: Pose | null
  readonly camera: RefObject<Camera | null>
  /** What the pointer is at. */
  readonly hovered: Signal<Selection>
  readonly select: (selection: Selection) => void
  readonly rest: (pose: Pose) => void
}

/** The frame with the picture in it. */
export function Picture(props: PictureProps): ComponentChild {
  const { scene, layout, selection, hovered, found } = props
  const { places } = layout
  const frame = useRef<HTMLDivElement>(null)
  const curves = useMemo(() => curvesOf(scene, layout), [scene, layout])
  const structure = structureOf(scene)
  const nearest = useRef<NearestEdge | null>(null)
  useEffect(() => {
    // Nobody points at an edge before the picture is painted.
    const timer = setTimeout(() => (nearest.current = new NearestEdge(curves)), INDEX_DELAY_MS)
    return () => clearTimeout(timer)
  }, [structure, layout])
  const current = useSignal<string | null>(null)
  const state = useRef({ props, nearest, curves })
  state.current = { props, nearest, curves }
  useCamera(frame, state)

  const isThere = scene.nodes.some(({ node }) => node.id === current.value)
  const reachable = isThere ? current.value : (scene.nodes[0]?.node.id ?? null)
  const isDense = scene.edges.length > MOST_LABELS
  const shapes = useMemo(
    () =>
      scene.nodes.map((node) =>
        nodeShape(node, places.get(node.node.id), found, node.node.id === reachable),
      ),
    [scene.nodes, places, found, reachable],
  )
  const lines = useMemo(() => batches(curves), [curves])
  const spots = useMemo(
    () => (isDense ? new Map<string, Point>() : labelPlaces(scene, layout, curves)),
    [structure, layout, isDense],
  )
  const texts = useMemo(() => labels(curves, spots), [curves, spots])
  useRovingFocus(frame, scene, places, current, props)
  const box = boundsOf(scene, layout)
  useLayoutEffect(() => {
    if (box !== null) props.camera.current?.show(grown(box))
  }, [box?.x, box?.y, box?.width, box?.height])

  return (
    <div class="frame" ref={frame} data-many={scene.edges.length > MANY_EDGES ? '' : undefined}>
      <svg class="layer edges" aria-hidden="true">
        {lines}
        {texts}
      </svg>
      <svg
        class="layer nodes"
        role="group"
        aria-label="Graph of who calls whom; the table of pairs says the same"
      >
        {shapes}
      </svg>
      <svg class="layer lit" aria-hidden="true">
        <Lit
          scene={scene}
          layout={layout}
          curves={curves}
          spots={spots}
          selection={selection}
          hovered={hovered}
          frame={frame}
        />
      </svg>
    </div>
  )
}

/** With room for edges that go around nodes. */
function grown({ x, y, width, height }: Box): Box {
  return {
    x: x - AROUND,
    y: y - AROUND,
    width: width + 2 * AROUND,
    height: height + 2 * AROUND,
  }
}

/** Changes when nodes or edges come or go, not with their figures. */
function structureOf(scene: Scene): string {
  return `${scene.nodes.length} ${scene.edges.map(({ key }) => key).join()}`
}

/** One path for all edges that look alike. */
function batches(curves: ReadonlyMap<string, Curve>): ComponentChild[] {
  const paths = new Map<string, { path: string[]; head: string[] }>()
  for (const { edge, path, head } of curves.values()) {
    const look = `${edge.kind} w${edge.weight}`
    const batch = paths.get(look) ?? { path: [], head: [] }
    paths.set(look, batch)
    batch.path.push(path)
    batch.head.push(head)
  }
  return Array.from(paths)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([look, { path, head }]) => (
      <g key={look} class={`line ${look}`}>
        <path class="curve" d={path.join('')} />
        <path class="head" d={head.join('')} />
      </g>
    ))
}

function labels(
  curves: ReadonlyMap<string, Curve>,
  spots: ReadonlyMap<string, Point>,
): ComponentChild[] {
  return Array.from(spots, ([key, place]) => {
    const edge = curves.get(key)?.edge
    return edge === undefined || edge.label === '' ? null : (
      <text key={key} class={`edge-label ${edge.kind}`} x={place.x} y={place.y + 3.5}>
        {edge.label}
      </text>
    )
  })
}

/** Marks of health that do not need colour. */
const healthMarks = {
  healthy: 'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z',
  degraded: 'M0 -5L5 4H-5z',
  failing: 'M0 -5.5L5.5 0L0 5.5L-5.5 0z',
  unknown: 'M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0zM-2.2 0a2.2 2.2 0 1 1 4.4 0a2.2 2.2 0 1 1 -4.4 0z',
} as const

function nodeShape(
  scene: SceneNode,
  place: Point | undefined,
  found: ReadonlySet<string>,
  isReachable: boolean,
): ComponentChild {
  if (place === undefined) return null
  const { id, health } = scene.node
  return (
    <g
      key={id}
      class={`node ${health}${found.has(id) ? ' found' : ''}`}
      data-id={id}
      role="button"
      tabindex={isReachable ? 0 : -1}
      transform={`translate(${place.x} ${place.y})`}
    >
      <title>{`${id}, ${health}, ${scene.detail}`}</title>
      {nodeFace(scene)}
    </g>
  )
}

function nodeFace({ node: { id, health }, detail }: SceneNode): ComponentChild {
  const [left, top] = [-NODE_WIDTH / 2, -NODE_HEIGHT / 2]
  return (
    <>
      <rect x={left} y={top} width={NODE_WIDTH} height={NODE_HEIGHT} rx={6} />
      <path class="mark" d={healthMarks[health]} transform={`translate(${left + 14} 0)`} />
      <text class="node-name" aria-hidden="true" x={left + 28} y={-2}>
        {shorten(id, NAME_LENGTH)}
      </text>
      <text class="node-detail" aria-hidden="true" x={left + 28} y={12}>
        {detail}
      </text>
    </>
  )
}

/** What the pointer is at, else what is selected, with its neighbours: above the dimmed rest. */
function Lit(props: {
  readonly scene: Scene
  readonly layout: Layout
  readonly curves: ReadonlyMap<string, Curve>
  readonly spots: ReadonlyMap<string, Point>
  readonly selection: Selection
  readonly hovered: ReadonlySignal<Selection>
  readonly frame: RefObject<HTMLDivElement | null>
}): ComponentChild {
  const { scene, layout, curves, spots, selection, hovered, frame } = props
  const shown = hovered.value ?? selection
  const ids = nodesOf(shown, scene)
  useLayoutEffect(() => {
    frame.current?.toggleAttribute('data-dim', ids.size > 0)
  })
  if (ids.size === 0) return null
  const own = new Map<string, Curve>()
  const ownSpots = new Map<string, Point>()
  for (const { key } of edgesOf(shown, scene)) {
    const curve = curves.get(key)
    if (curve === undefined) continue
    own.set(key, curve)
    ownSpots.set(key, spots.get(key) ?? middleOf(curve))
  }
  return (
    <>
      {batches(own)}
      {own.size > MOST_LABELS ? null : labels(own, ownSpots)}
      {scene.nodes.map((node) => {
        const { id, health } = node.node
        const place = layout.places.get(id)
        if (!ids.has(id) || place === undefined) return null
        const isIt = shown?.kind === 'node' && shown.id === id
        return (
          <g
            key={id}
            class={`node ${health}${isIt ? ' at' : ''}`}
            transform={`translate(${place.x} ${place.y})`}
          >
            {nodeFace(node)}
          </g>
        )
      })}
    </>
  )
}

type State = RefObject<{
  readonly props: PictureProps
  readonly curves: ReadonlyMap<string, Curve>
  readonly nearest: RefObject<NearestEdge | null>
}>

function useCamera(frame: RefObject<HTMLDivElement | null>, state: State): void {
  useLayoutEffect(() => {
    const element = frame.current
    if (element === null) return undefined
    const at = (point: Point, reach: number): Selection => {
      if (state.current === null) return null
      const { props, nearest, curves } = state.current
      const id = nodeAt(point, props)
      if (id !== null) return { kind: 'node', id }
      nearest.current ??= new NearestEdge(curves)
      const key = nearest.current.find(point, reach)
      return key === null ? null : { kind: 'edge', key }
    }
    const camera = new Camera(element, [...element.querySelectorAll<SVGSVGElement>('.layer')], {
      hover: (point, reach) => {
        const next = point === null ? null : at(point, reach)
        const hovered = state.current?.props.hovered
        if (hovered !== undefined && !isSame(hovered.peek(), next)) hovered.value = next
        element.toggleAttribute('data-over', next !== null)
      },
      press: (point, reach) => state.current?.props.select(at(point, reach)),
      rest: (pose) => state.current?.props.rest(pose),
    })
    let isPlaced = false
    const look = (): void => {
      const props = state.current?.props
      const box = props === undefined ? null : boundsOf(props.scene, props.layout)
      if (props === undefined || box === null || element.clientWidth === 0) return
      if (isPlaced) camera.resized()
      else if (props.pose !== null) camera.set(props.pose)
      else camera.fit(box)
      isPlaced = true
    }
    if (state.current !== null) state.current.props.camera.current = camera
    look()
    const resize = new ResizeObserver(look)
    resize.observe(element)
    return () => {
      resize.disconnect()
      camera.end()
    }
  }, [])
}

function nodeAt({ x, y }: Point, { scene, layout: { places } }: PictureProps): string | null {
  for (const { node } of scene.nodes) {
    const place = places.get(node.id)
    if (place === undefined) continue
    if (Math.abs(place.x - x) <= NODE_WIDTH / 2 && Math.abs(place.y - y) <= NODE_HEIGHT / 2)
      return node.id
  }
  return null
}

function isSame(a: Selection, b: Selection): boolean {
  if (a === null || b === null) return a === b
  return a.kind === 'node'
    ? b.kind === 'node' && a.id === b.id
    : b.kind === 'edge' && a.key === b.key
}

/** One node is reached by Tab, the others from it by the arrow keys. */
function useRovingFocus(
  frame: RefObject<HTMLDivElement | null>,
  scene: Scene,
  places: ReadonlyMap<string, Point>,
  current: Signal<string | null>,
  { select, camera, hovered }: PictureProps,
): void {
  const ids = scene.nodes.map(({ node }) => node.id)
  useEffect(() => {
    const element = frame.current
    if (element === null) return undefined
    const abort = new AbortController()
    const { signal } = abort
    element.addEventListener(
      'keydown',
      (event) => {
        const id = idOf(event.target)
        if (id === null) return
        if (event.key === 'Enter' || event.key === ' ') {
          event.preventDefault()
          select({ kind: 'node', id })
        }
        const next = neighbourOf(id, event.key, places, ids)
        if (next === null) return
        event.preventDefault()
        current.value = next
        element
          .querySelector<SVGGElement>(`.nodes .node[data-id="${CSS.escape(next)}"]`)
          ?.focus({ preventScroll: true })
      },
      { signal },
    )
    element.addEventListener(
      'focusin',
      (event) => {
        const id = idOf(event.target)
        const place = places.get(id ?? '')
        if (id === null || place === undefined) return
        camera.current?.reveal(place, NODE_WIDTH / 2)
        hovered.value = { kind: 'node', id }
      },
      { signal },
    )
    element.addEventListener('focusout', () => (hovered.value = null), { signal })
    return () => abort.abort()
  }, [ids.join('\u0000'), places])
}

function idOf(target: EventTarget | null): string | null {
  return target instanceof SVGElement ? (target.dataset['id'] ?? null) : null
}

/** The nearest node in the direction of an arrow key. */
function neighbourOf(
  id: string,
  key: string,
  places: ReadonlyMap<string, Point>,
  ids: readonly string[],
): string | null {
  const direction = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[
    key
  ]
  const from = places.get(id)
  if (direction === undefined || from === undefined) return null
  const [dx = 0, dy = 0] = direction
  let best: string | null = null
  let least = Infinity
  for (const other of ids) {
    const place = places.get(other)
    if (other === id || place === undefined) continue
    const along = (place.x - from.x) * dx + (place.y - from.y) * dy
    const aside = Math.abs((place.x - from.x) * dy) + Math.abs((place.y - from.y) * dx)
    if (along <= 1) continue
    const cost = along + 3 * aside
    if (cost < least) [least, best] = [cost, other]
  }
  return best
}
