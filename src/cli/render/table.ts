/**
 * Aligned columns on standard output: headings in capitals, two spaces between columns, no lines.
 *
 * Color only where standard output is a terminal that wants it (NO_COLOR is obeyed). Cells may hold text that
 * came from other hosts: control characters never reach the terminal.
 */
import { styleText } from 'node:util'

/** How a cell is meant; the color follows from it. */
export type Tone = 'good' | 'warning' | 'bad' | 'faint'

/** Text, with a tone where it means something. */
export type Cell = string | { readonly text: string; readonly tone: Tone }

const COLORS = { good: 'green', warning: 'yellow', bad: 'red', faint: 'gray' } as const

/**
 * Longest cell but for the last of a row, in characters; what is longer ends with an ellipsis. JSON output
 * has it whole.
 */
const MAX_CELL = 80

/** The lines of a table, without a newline at the end. Rows with too few cells are filled with blanks. */
export function renderTable(
  headings: readonly string[],
  rows: readonly (readonly Cell[])[],
): string {
  const last = headings.length - 1
  const widths = headings.map((heading, column) =>
    Math.max(heading.length, ...rows.map((row) => shortText(row[column] ?? '').length)),
  )
  const line = (cells: readonly Cell[]): string =>
    headings
      .map((_heading, column) => {
        const cell = cells[column] ?? ''
        if (column === last) return paint(cell)
        const text = shortText(cell)
        return tint(cell, text) + ' '.repeat((widths[column] ?? 0) - text.length)
      })
      .join('  ')
      .trimEnd()
  return [line(headings), ...rows.map(line)].join('\n')
}

/** A cell's whole text, painted for the terminal. */
export function paint(cell: Cell): string {
  return tint(cell, cleanText(cell))
}

function tint(cell: Cell, text: string): string {
  return typeof cell === 'string' ? text : styleText(COLORS[cell.tone], text)
}

function shortText(cell: Cell): string {
  const text = cleanText(cell)
  return text.length > MAX_CELL ? `${text.slice(0, MAX_CELL - 1)}…` : text
}

function cleanText(cell: Cell): string {
  const text = typeof cell === 'string' ? cell : cell.text
  // Bidirectional overrides reorder what follows them on some terminals.
  return text.replaceAll(/[\p{Cc}\p{Cf}]/gu, '\uFFFD')
}
