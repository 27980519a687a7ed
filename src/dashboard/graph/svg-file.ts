/**
 * The picture as a file of its own: SVG text with its colours in it, for a document or a ticket. Pure.
 */
import { shorten } from '../format.ts'
import { boundsOf, curvesOf, labelPlaces, NODE_HEIGHT, NODE_WIDTH } from './geometry.ts'
import type { Layout } from './layout.ts'
import type { EdgeClass, Scene } from './scene.ts'

/** The colours of a picture, as CSS writes them. */
export interface Palette {
  readonly background: string
  readonly node: string
  readonly border: string
  readonly text: string
  readonly faint: string
  readonly edgeOf: (kind: EdgeClass) => string
  readonly health: Readonly<Record<'healthy' | 'degraded' | 'failing' | 'unknown', string>>
}

/** More labels than this would hide the picture. */
export const MOST_LABELS = 60
const MARGIN = 32
const TITLE_HEIGHT = 28
const WIDTHS = [1, 1.5, 2.5, 4, 6] as const
const FONT = 'system-ui, sans-serif'

/** The file. `title` says what is shown and of when. */
export function svgFile(scene: Scene, layout: Layout, palette: Palette, title: string): string {
  const box = boundsOf(scene, layout) ?? { x: 0, y: 0, width: 0, height: 0 }
  const [x, y] = [box.x - MARGIN, box.y - MARGIN - TITLE_HEIGHT]
  const [width, height] = [box.width + 2 * MARGIN, box.height + 2 * MARGIN + TITLE_HEIGHT]
  const parts = [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${x} ${y} ${width} ${height}" width="${width}" height="${height}" font-family="${FONT}" font-size="13">`,
    `<title>${escaped(title)}</title>`,
    `<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="${palette.background}"/>`,
    `<text x="${x + MARGIN}" y="${y + 30}" fill="${palette.faint}">${escaped(title)}</text>`,
  ]
  const curves = curvesOf(scene, layout)
  const labels = labelPlaces(scene, layout, curves)
  for (const [key, { edge, path, head }] of curves) {
    const colour = palette.edgeOf(edge.kind)
    const dash = edge.kind === 'deny' || edge.kind === 'default' ? ' stroke-dasharray="6 4"' : ''
    parts.push(
      `<g><title>${escaped(`${edge.edge.source} → ${edge.edge.destination}`)}</title>`,
      `<path d="${path}" fill="none" stroke="${colour}" stroke-width="${WIDTHS[edge.weight] ?? 1}"${dash}/>`,
      `<path d="${head}" fill="${colour}"/></g>`,
    )
    const place = labels.get(key)
    if (edge.label !== '' && place !== undefined && scene.edges.length <= MOST_LABELS)
      parts.push(
        `<text x="${place.x}" y="${place.y + 4}" font-size="11" text-anchor="middle" fill="${palette.text}" stroke="${palette.background}" stroke-width="4" paint-order="stroke">${escaped(edge.label)}</text>`,
      )
  }
  for (const { node, detail } of scene.nodes) {
    const place = layout.places.get(node.id)
    if (place === undefined) continue
    const [left, top] = [place.x - NODE_WIDTH / 2, place.y - NODE_HEIGHT / 2]
    parts.push(
      `<g><title>${escaped(`${node.id}: ${node.health}`)}</title>`,
      `<rect x="${left}" y="${top}" width="${NODE_WIDTH}" height="${NODE_HEIGHT}" rx="6" fill="${palette.node}" stroke="${palette.border}"/>`,
      `<circle cx="${left + 14}" cy="${place.y}" r="4" fill="${palette.health[node.health]}"/>`,
      `<text x="${left + 28}" y="${place.y - 2}" fill="${palette.text}">${escaped(shorten(node.id, 19))}</text>`,
      `<text x="${left + 28}" y="${place.y + 12}" font-size="11" fill="${palette.faint}">${escaped(detail)}</text></g>`,
    )
  }
  return `${parts.join('\n')}\n</svg>\n`
}

const escapes: Readonly<Record<string, string>> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}

/** Text of the network as XML: marks escaped, and characters that XML does not have left out. */
function escaped(text: string): string {
  return text
    .replaceAll(/[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, '\ufffd')
    .replaceAll(/[&<>"']/g, (mark) => escapes[mark] ?? '')
}
