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

/** Longest cell, in characters; what is longer ends with an ellipsis. JSON output has it whole. */
const MAX_CELL = 80

/** The lines of a table, without a newline at the end. Rows with too few cells are filled with blanks. */
export function renderTable(
  headings: readonly string[],
  rows: readonly (readonly Cell[])[],
): string {
  const widths = headings.map((heading, column) =>
    Math.max(heading.length, ...rows.map((row) => cellText(row[column] ?? '').length)),
  )
  const line = (cells: readonly Cell[]): string =>
    headings
      .map((_heading, column) => {
        const cell = cells[column] ?? ''
        const padding = ' '.repeat((widths[column] ?? 0) - cellText(cell).length)
        return column === headings.length - 1 ? paint(cell) : `${paint(cell)}${padding}`
      })
      .join('  ')
      .trimEnd()
  return [line(headings), ...rows.map(line)].join('\n')
}

/** A cell's text, painted for the terminal. */
export function paint(cell: Cell): string {
  const text = cellText(cell)
  return typeof cell === 'string' ? text : styleText(COLORS[cell.tone], text)
}

function cellText(cell: Cell): string {
  const text = typeof cell === 'string' ? cell : cell.text
  // Bidirectional overrides reorder what follows them on some terminals.
  const clean = text.replaceAll(/[\p{Cc}\p{Cf}]/gu, '\uFFFD')
  return clean.length > MAX_CELL ? `${clean.slice(0, MAX_CELL - 1)}…` : clean
}
