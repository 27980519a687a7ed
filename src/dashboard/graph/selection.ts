/**
 * What the reader has chosen in the graph, as the address says it: `web` is a node, `web>db` an edge. Pure.
 */
import { edgeKey, type Scene, type SceneEdge } from './scene.ts'

/** A node, an edge, or nothing. */
export type Selection =
  | { readonly kind: 'node'; readonly id: string }
  | { readonly kind: 'edge'; readonly key: string }
  | null

/** Reads the parameter `sel`. */
export function parseSelection(text: string | undefined): Selection {
  if (text === undefined || text === '') return null
  const parts = text.split('>')
  const [source, destination] = parts.map(decodeURIComponentSafely)
  if (source === undefined) return null
  return destination === undefined
    ? { kind: 'node', id: source }
    : { kind: 'edge', key: edgeKey({ source, destination }) }
}

/** Writes the parameter `sel`. */
export function formatSelection(selection: Selection): string | undefined {
  if (selection === null) return undefined
  const names = selection.kind === 'node' ? [selection.id] : selection.key.split('\u0000')
  return names.map((name) => name.replaceAll('%', '%25').replaceAll('>', '%3E')).join('>')
}

/** The edges that belong to a selection. */
export function edgesOf(selection: Selection, scene: Scene): SceneEdge[] {
  if (selection === null) return []
  return scene.edges.filter(({ key, edge }) =>
    selection.kind === 'edge'
      ? key === selection.key
      : edge.source === selection.id || edge.destination === selection.id,
  )
}

/** The nodes that belong to a selection. */
export function nodesOf(selection: Selection, scene: Scene): Set<string> {
  const ids = new Set<string>()
  if (selection?.kind === 'node') ids.add(selection.id)
  for (const { edge } of edgesOf(selection, scene)) {
    ids.add(edge.source)
    ids.add(edge.destination)
  }
  return ids
}

function decodeURIComponentSafely(text: string): string {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}
