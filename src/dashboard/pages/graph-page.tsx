/**
 * The graph of who calls whom: toolbar, picture, details, table of pairs.
 */
import { useComputed, useSignal } from '@preact/signals'
import type { ComponentChild, RefObject } from 'preact'
import { useMemo, useRef } from 'preact/hooks'

import type { GraphDocument, GroupBy } from '../../model/fleet.ts'
import type { Camera, Pose } from '../graph/camera.ts'
import { boundsOf } from '../graph/geometry.ts'
import type { Pair } from '../graph/layers.ts'
import { arrange, extend, type Layout } from '../graph/layout.ts'
import { countsOf, Panel } from '../graph/panel.tsx'
import { Picture } from '../graph/picture.tsx'
import {
  type Colouring,
  colourings,
  type EdgeClass,
  edgeKey,
  found,
  type Labelling,
  labellings,
  makeScene,
  merged,
  type Only,
  type Scene,
} from '../graph/scene.ts'
import { formatSelection, parseSelection, type Selection } from '../graph/selection.ts'
import { svgFile } from '../graph/svg-file.ts'
import { type GraphActions, Toolbar } from '../graph/toolbar.tsx'
import { liveEvent, liveStatus } from '../live.ts'
import { change, view } from '../location.ts'
import { Pairs } from '../parts/pairs.tsx'
import { Empty, Notes, Waiting } from '../parts/words.tsx'
import { colourOf } from '../theme.ts'
import { HALF_MINUTE_MS, type Loaded, useDocument, WITH_EVENTS_MS } from '../use-document.ts'
import { useLater } from '../use-later.ts'

/** Spans that the picture takes by itself. */
const BASE_WINDOW = '5m'
const DEFAULT_WINDOW = '1m'

/** The page. */
export function GraphPage(): ComponentChild {
  const { loaded, document } = useGraph()
  return (
    <main class="page graph-page">
      <h1 class="only-read">Graph</h1>
      <Waiting loaded={loaded} what="the graph" />
      {document !== null && <Graph document={document} isOld={loaded.isOld} />}
    </main>
  )
}

/** The document of the view; in the live view what the events say, on top of the pairs of the last minutes. */
function useGraph(): {
  readonly loaded: Loaded<GraphDocument>
  readonly document: GraphDocument | null
} {
  const { params } = view.value
  const { at, window } = params
  const group = groupOf(params['group'])
  const isStream =
    at === undefined &&
    window === undefined &&
    group === 'service' &&
    liveStatus.value.state === 'live'
  const wantsBase = at === undefined && window === undefined && group === 'service'
  const query = useMemo(
    () => ({ group, window: window ?? (wantsBase ? BASE_WINDOW : DEFAULT_WINDOW), at }),
    [group, window, at, wantsBase],
  )
  const loaded = useDocument('graph', query, isStream ? HALF_MINUTE_MS : WITH_EVENTS_MS)
  const live = liveEvent.value?.graph
  const fits = loaded.document !== null && loaded.document.group === group
  const document = useMemo(() => {
    const base = fits ? loaded.document : null
    return isStream && live !== undefined ? merged(base, live) : base
  }, [loaded.document, isStream, live, fits])
  return { loaded, document }
}

function groupOf(text: string | undefined): GroupBy {
  return text === 'host' || text === 'zone' || text === 'datacenter' ? text : 'service'
}

/** Places of nodes by grouping; they last as long as the page is open. */
const layouts = new Map<GroupBy, Layout>()

function layoutFor({ group, nodes, edges }: GraphDocument): Layout {
  const known = layouts.get(group) ?? { places: new Map(), routes: new Map() }
  const ids = nodes.map(({ id }) => id)
  if (ids.every((id) => known.places.has(id))) return known
  const next = extend(known, ids, pairsOf(edges))
  layouts.set(group, next)
  return next
}

function pairsOf(edges: GraphDocument['edges']): Pair[] {
  return edges.map(({ source, destination }) => [source, destination] as const)
}

function Graph(props: {
  readonly document: GraphDocument
  readonly isOld: boolean
}): ComponentChild {
  const { document } = props
  const { params } = view.value
  const arranged = useSignal(0)
  const hovered = useSignal<Selection>(null)
  const camera = useRef<Camera>(null)
  const options = {
    colouring: colouringOf(params['colour']),
    labelling: labellingOf(params['label']),
    hide: params['hide'] ?? '',
    only: onlyOf(params['only']),
  }
  const scene = useMemo(
    () => makeScene(document, options),
    [document, options.colouring, options.labelling, options.hide, options.only],
  )
  const layout = useMemo(() => layoutFor(document), [document, arranged.value])
  const selection = useMemo(() => parseSelection(params['sel']), [params['sel']])
  const matches = useMemo(() => found(scene.nodes, params['find'] ?? ''), [scene, params['find']])
  const foundSet = useMemo(() => new Set(matches), [matches.join('\u0000')])
  const select = (next: Selection): void => change({ sel: formatSelection(next) }, 'push')
  const actions = actionsOf({ document, scene, layout, selection, matches, camera, select }, () => {
    arranged.value += 1
  })
  const pose = useComputed(() => parsePose(view.value.params['cam']))
  return (
    <div class={`graph${props.isOld ? ' old' : ''}`}>
      <Notes coverage={document.coverage} />
      <Toolbar
        document={document}
        options={options}
        matches={params['find'] === undefined ? null : matches.length}
        hidden={scene.hidden}
        actions={actions}
      />
      <div class={`stage${selection === null ? '' : ' with-panel'}`}>
        {scene.nodes.length === 0 ? (
          <Nothing document={document} />
        ) : (
          <Picture
            key={document.group}
            scene={scene}
            layout={layout}
            selection={selection}
            found={foundSet}
            pose={pose.peek()}
            camera={camera}
            hovered={hovered}
            select={select}
            rest={(to) => change({ cam: formatPose(to) })}
          />
        )}
        <Panel document={document} selection={selection} select={select} />
      </div>
      {scene.edges.length > 0 && (
        <PairsOfScene scene={scene} document={document} selection={selection} select={select} />
      )}
    </div>
  )
}

/** What the buttons of the toolbar act on. */
interface Shown {
  readonly document: GraphDocument
  readonly scene: Scene
  readonly layout: Layout
  readonly selection: Selection
  readonly matches: readonly string[]
  readonly camera: RefObject<Camera | null>
  readonly select: (selection: Selection) => void
}

function actionsOf(shown: Shown, isArranged: () => void): GraphActions {
  const { document, scene, layout, selection, matches, camera, select } = shown
  return {
    fit: () => {
      const box = boundsOf(scene, layout)
      if (box !== null) camera.current?.fit(box)
      change({ cam: undefined })
    },
    zoom: (factor: number) => camera.current?.zoom(factor),
    arrange: () => {
      layouts.set(
        document.group,
        arrange(
          scene.nodes.map(({ node }) => node.id),
          pairsOf(scene.edges.map(({ edge }) => edge)),
        ),
      )
      isArranged()
    },
    save: () => saveSvg(scene, layout, document),
    next: () => {
      const now = selection?.kind === 'node' ? matches.indexOf(selection.id) : -1
      const id = matches[(now + 1) % Math.max(1, matches.length)]
      if (id === undefined) return
      select({ kind: 'node', id })
      const place = layout.places.get(id)
      if (place !== undefined) camera.current?.reveal(place, 90)
    },
  }
}

function PairsOfScene(props: {
  readonly scene: Scene
  readonly document: GraphDocument
  readonly selection: Selection
  readonly select: (selection: Selection) => void
}): ComponentChild {
  const { document, selection, select } = props
  const scene = useLater(props.scene)
  const { params } = view.value
  const isOpen = params['table'] !== '0'
  const wanted = (params['find'] ?? '').trim().toLowerCase()
  if (scene === null) return null
  const edges = scene.edges
    .map(({ edge }) => edge)
    .filter(
      ({ source, destination }) =>
        wanted === '' ||
        source.toLowerCase().includes(wanted) ||
        destination.toLowerCase().includes(wanted),
    )
  return (
    <details
      class="pairs"
      open={isOpen}
      onToggle={(event) => {
        const next = event.currentTarget.open
        if (next !== isOpen) change({ table: next ? undefined : '0' })
      }}
    >
      <summary>
        Pairs <span class="faint">{edges.length}</span>
      </summary>
      {isOpen && (
        <Pairs
          caption="Pairs of the graph"
          isCaptionHidden
          edges={edges}
          linkNames={document.group === 'service'}
          param="sort"
          marked={selection?.kind === 'edge' ? selection.key : undefined}
          select={(edge) => select({ kind: 'edge', key: edgeKey(edge) })}
        />
      )}
    </details>
  )
}

function Nothing({ document }: { readonly document: GraphDocument }): ComponentChild {
  if (document.nodes.length > 0)
    return (
      <Empty
        title="Everything is hidden"
        otherwise="No node passes the filters of the toolbar; take back 'hide' or 'show'."
      />
    )
  return (
    <Empty
      title={`No ${document.group} in this picture`}
      coverage={document.coverage}
      otherwise={
        document.group === 'zone'
          ? 'No host says in which zone it is: set zone in its configuration.'
          : 'Hosts report, and no service of theirs had a connection in the span.'
      }
    />
  )
}

function saveSvg(scene: Scene, layout: Layout, { coverage, ...rest }: GraphDocument): void {
  const edges = new Map<EdgeClass, string>()
  for (const { kind } of scene.edges)
    if (!edges.has(kind)) edges.set(kind, colourOf(`--edge-${kind}`))
  const palette = {
    background: colourOf('--ground'),
    node: colourOf('--raised'),
    border: colourOf('--border-strong'),
    text: colourOf('--text'),
    faint: colourOf('--faint'),
    edgeOf: (kind: EdgeClass) => edges.get(kind) ?? '',
    health: {
      healthy: colourOf('--good'),
      degraded: colourOf('--warn'),
      failing: colourOf('--bad'),
      unknown: colourOf('--faint'),
    },
  }
  const title = `hostmesh: ${countsOf({ coverage, ...rest })}, ${coverage.at}`
  const file = new Blob([svgFile(scene, layout, palette, title)], { type: 'image/svg+xml' })
  const link = document.createElement('a')
  link.href = URL.createObjectURL(file)
  link.download = `hostmesh-${coverage.at.replaceAll(/[^\dTZ]/g, '')}.svg`
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000)
}

function parsePose(text: string | undefined): Pose | null {
  const [x, y, scale] = (text ?? '').split(',').map(Number)
  if (x === undefined || y === undefined || scale === undefined) return null
  return [x, y, scale].every(Number.isFinite) && scale > 0 ? { x, y, scale } : null
}

function formatPose({ x, y, scale }: Pose): string {
  return `${Math.round(x)},${Math.round(y)},${scale.toFixed(3)}`
}

function colouringOf(text: string | undefined): Colouring {
  return colourings.find((known) => known === text) ?? 'health'
}

function labellingOf(text: string | undefined): Labelling {
  return labellings.find((known) => known === text) ?? 'traffic'
}

function onlyOf(text: string | undefined): Only {
  return text === 'active' || text === 'problems' || text === 'denied' ? text : 'all'
}
