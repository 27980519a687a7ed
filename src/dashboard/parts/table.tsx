/**
 * A table that sorts by its columns and shows long lists in parts.
 */
import type { ComponentChild } from 'preact'
import { useState } from 'preact/hooks'

import { formatCount } from '../format.ts'
import { change, view } from '../location.ts'

/** A column. */
export interface Column<Row> {
  readonly key: string
  readonly title: string
  /** What the title means, where it needs saying. */
  readonly hint?: string
  readonly isNumber?: boolean
  /** In characters; by itself numbers take 12, and other columns share the rest. */
  readonly width?: number
  /** What rows are sorted by; null comes last. */
  readonly sortBy: (row: Row) => string | number | null
  readonly cell: (row: Row) => ComponentChild
}

/** A table. */
export interface TableProps<Row> {
  readonly caption: string
  readonly columns: readonly Column<Row>[]
  readonly rows: readonly Row[]
  readonly keyOf: (row: Row) => string
  /** Key of a column; with `-` before it, from large to small. */
  readonly sort: string
  /** Parameter of the address that holds the order; without it the order is forgotten. */
  readonly param?: string
  /** Whether the caption is only for screen readers. */
  readonly isCaptionHidden?: boolean
  readonly isMarked?: (row: Row) => boolean
}

const PART = 100
/** Characters, with the space beside them. */
const NUMBER_WIDTH = 12
const TEXT_WIDTH = 14

/** The table, in a frame that scrolls sideways. */
export function Table<Row>(props: TableProps<Row>): ComponentChild {
  const [own, setOwn] = useState(props.sort)
  const [limit, setLimit] = useState(PART)
  const { param, columns } = props
  const sort = param === undefined ? own : (view.value.params[param] ?? props.sort)
  const sorted = sortRows(props, sort)
  const least = columns.reduce(
    (sum, { isNumber, width }) => sum + (width ?? (isNumber === true ? NUMBER_WIDTH : TEXT_WIDTH)),
    0,
  )
  const order = (next: string): void =>
    param === undefined ? setOwn(next) : change({ [param]: next === props.sort ? undefined : next })
  return (
    <section class="table-frame" tabIndex={0} aria-label={props.caption}>
      <table style={{ minWidth: `${least}ch` }}>
        <caption class={props.isCaptionHidden === true ? 'only-read' : ''}>{props.caption}</caption>
        <colgroup>
          {columns.map(({ key, isNumber, width }) => (
            <col key={key} style={{ width: widthOf(isNumber, width) }} />
          ))}
        </colgroup>
        <thead>
          <tr>
            {columns.map((column) => (
              <Head key={column.key} column={column} sort={sort} order={order} />
            ))}
          </tr>
        </thead>
        <tbody>
          {sorted.slice(0, limit).map((row) => (
            <tr key={props.keyOf(row)} class={props.isMarked?.(row) === true ? 'marked' : ''}>
              {columns.map((column, index) =>
                index === 0 ? (
                  <th key={column.key} scope="row">
                    {column.cell(row)}
                  </th>
                ) : (
                  <td key={column.key} class={column.isNumber === true ? 'number' : ''}>
                    {column.cell(row)}
                  </td>
                ),
              )}
            </tr>
          ))}
        </tbody>
      </table>
      {sorted.length > limit && (
        <button type="button" class="button" onClick={() => setLimit(limit + 10 * PART)}>
          Show more of {formatCount(sorted.length)} rows
        </button>
      )}
    </section>
  )
}

/** Figures that change leave columns where they are. */
function widthOf(isNumber: boolean | undefined, width: number | undefined): string {
  if (width !== undefined) return `${width}ch`
  return isNumber === true ? `${NUMBER_WIDTH}ch` : 'auto'
}

function Head<Row>(props: {
  readonly column: Column<Row>
  readonly sort: string
  readonly order: (next: string) => void
}): ComponentChild {
  const { column, sort, order } = props
  const isOurs = sort.replace(/^-/, '') === column.key
  const isDown = sort.startsWith('-')
  // Numbers begin with the largest.
  const isNextDown = isOurs ? !isDown : column.isNumber === true
  const next = isNextDown ? `-${column.key}` : column.key
  return (
    <th
      scope="col"
      class={column.isNumber === true ? 'number' : ''}
      aria-sort={isOurs ? (isDown ? 'descending' : 'ascending') : 'none'}
    >
      <button type="button" title={column.hint} onClick={() => order(next)}>
        {column.title}
        <span class="arrow" aria-hidden="true">
          {isOurs ? (isDown ? '↓' : '↑') : ''}
        </span>
      </button>
    </th>
  )
}

function sortRows<Row>({ columns, rows }: TableProps<Row>, sort: string): Row[] {
  const key = sort.replace(/^-/, '')
  const column = columns.find((candidate) => candidate.key === key)
  if (column === undefined) return [...rows]
  const sign = sort.startsWith('-') ? -1 : 1
  return rows
    .map((row) => ({ row, value: column.sortBy(row) }))
    .toSorted((a, b) => compare(a.value, b.value, sign))
    .map(({ row }) => row)
}

function compare(a: string | number | null, b: string | number | null, sign: number): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null)
  if (typeof a === 'number' && typeof b === 'number') return sign * (a - b)
  return sign * String(a).localeCompare(String(b), 'en', { numeric: true })
}
