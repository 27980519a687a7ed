/**
 * Aligned columns on standard output: headings in capitals, two spaces between columns, no lines.
 *
 * Color only if standard output is a terminal that accepts it (NO_COLOR is respected). Cells may contain text from
 * other hosts: control characters never reach the terminal.
 */
import { styleText } from 'node:util'

/** The meaning of a cell, which sets its color. */
export type Tone = 'good' | 'warning' | 'bad' | 'faint'

/** Text, with a tone if it has a meaning. */
export type Cell = string | { readonly text: string; readonly tone: Tone }

const COLORS = { good: 'green', warning: 'yellow', bad: 'red', faint: 'gray' } as const

/**
 * Maximum length of a cell, except the last of a row, in characters; longer text ends with an ellipsis. JSON output has
 * the full text.
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

/** The full text of a cell, colored for the terminal. */
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
  // Bidirectional overrides reorder the following text on some terminals.
  return text.replaceAll(/[\p{Cc}\p{Cf}]/gu, '\uFFFD')
}
