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

/** How much room a table has. */
export interface TableStyle {
  /** Characters in a line of the terminal; undefined where lines may be of any length. */
  readonly width: number | undefined
  /** Whether all columns are shown, each in full. */
  readonly isWide: boolean
}

/** For output that is no terminal. */
export const plainStyle: TableStyle = { width: undefined, isWide: false }

/** A column of a table of `Row`. */
export interface Column<Row> {
  readonly heading: string
  readonly cell: (row: Row) => Cell
  /** Shown only with `-o wide`. */
  readonly isWide?: boolean
}

const COLORS = { good: 'green', warning: 'yellow', bad: 'red', faint: 'gray' } as const

/**
 * Maximum length of a cell, except the last of a row, in characters; longer text ends with an ellipsis. JSON output and
 * `-o wide` have the full text.
 */
const MAX_CELL = 80

/** On a narrow terminal a column is shortened to this many characters, on a very narrow one further. */
const LEAST_CELL = 8

/** No column has fewer characters. */
const LEAST_HEADING = 4

/** On a narrow terminal the last column has this many characters, if it needs them. */
const LEAST_LAST = 24

const GAP = '  '

/** The lines of a table of `rows`, without a newline at the end. */
export function renderList<Row>(
  columns: readonly Column<Row>[],
  rows: readonly Row[],
  style: TableStyle,
): string {
  const shown = columns.filter(({ isWide = false }) => style.isWide || !isWide)
  return renderTable(
    shown.map(({ heading }) => heading),
    rows.map((row) => shown.map(({ cell }) => cell(row))),
    style,
  )
}

/**
 * The lines of a table, without a newline at the end. Rows with too few cells are filled with blanks. Where the terminal
 * is too narrow the widest columns are shortened, and the last one continues on further lines.
 */
export function renderTable(
  headings: readonly string[],
  rows: readonly (readonly Cell[])[],
  style: TableStyle = plainStyle,
): string {
  const last = headings.length - 1
  const limit = style.isWide ? Number.POSITIVE_INFINITY : MAX_CELL
  const content = headings.map((_heading, column) =>
    rows.reduce((width, row) => {
      const { length } = cleanText(row[column] ?? '')
      return Math.max(width, column === last ? length : Math.min(length, limit))
    }, 0),
  )
  const natural = headings.map((heading, column) => Math.max(heading.length, content[column] ?? 0))
  const widths = style.isWide ? natural : fit(content, natural, style.width)
  const lines = (cells: readonly Cell[]): string[] => {
    const start = headings.slice(0, last).map((_heading, column) => {
      const cell = cells[column] ?? ''
      const width = widths[column] ?? 0
      const text = shorten(cleanText(cell), width)
      return tint(cell, text) + ' '.repeat(width - text.length) + GAP
    })
    const cell = cells[last] ?? ''
    const [first = '', ...more] = wrap(cleanText(cell), widths[last] ?? 0)
    const indent = ' '.repeat(widths.slice(0, last).reduce((sum, width) => sum + width + 2, 0))
    return [
      (start.join('') + tint(cell, first)).trimEnd(),
      ...more.map((text) => indent + tint(cell, text)),
    ]
  }
  return [headings, ...rows].flatMap(lines).join('\n')
}

/** The full text of a cell, colored for the terminal. */
export function paint(cell: Cell): string {
  return tint(cell, cleanText(cell))
}

/**
 * The widths of columns on a terminal of `width` characters: headings are shortened first, then the widest columns.
 *
 * @param content widths without the headings
 */
function fit(
  content: readonly number[],
  natural: readonly number[],
  width: number | undefined,
): readonly number[] {
  if (width === undefined) return natural
  const last = natural.length - 1
  const room = width - GAP.length * last
  const lastWidth = natural[last] ?? 0
  const leastLast = Math.min(lastWidth, LEAST_LAST)
  const widths = natural.slice(0, last)
  const sum = (): number => widths.reduce((total, each) => total + each, 0)
  for (const floor of [(column: number) => content[column] ?? 0, () => LEAST_CELL, () => 1]) {
    while (sum() + leastLast > room) {
      const shrinking = widths
        .map((each, column) => ({ each, column }))
        .filter(({ each, column }) => each > Math.max(floor(column), LEAST_HEADING))
        .reduce((widest, one) => (one.each > widest.each ? one : widest), { each: 0, column: -1 })
      if (shrinking.column < 0) break
      widths[shrinking.column] = shrinking.each - 1
    }
  }
  return [...widths, Math.max(LEAST_HEADING, Math.min(lastWidth, room - sum()))]
}

/** Text in lines of at most `width` characters, broken at spaces where there are some. */
function wrap(text: string, width: number): string[] {
  if (width <= 0) return [text]
  const lines: string[] = []
  let rest = text
  while (rest.length > width) {
    const space = rest.lastIndexOf(' ', width)
    const end = space > 0 ? space : width
    lines.push(rest.slice(0, end))
    rest = rest.slice(end).trimStart()
  }
  return rest === '' && lines.length > 0 ? lines : [...lines, rest]
}

function shorten(text: string, width: number): string {
  return text.length > width ? `${text.slice(0, Math.max(0, width - 1))}…` : text
}

function tint(cell: Cell, text: string): string {
  return typeof cell === 'string' || text === '' ? text : styleText(COLORS[cell.tone], text)
}

function cleanText(cell: Cell): string {
  const text = typeof cell === 'string' ? cell : cell.text
  // Bidirectional overrides reorder the following text on some terminals.
  return text.replaceAll(/[\p{Cc}\p{Cf}]/gu, '\uFFFD')
}
