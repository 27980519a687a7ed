/**
 * What is counted in the words of a host's report (`src/model/report.ts`): the columns, and rows without their zeros.
 */
import type { ReportColumn, ReportColumns, SparseCells } from '../model/report.ts'
import type { Column, Columns, Layout } from './columns.ts'
import { trafficLayout, workerLayout } from './counters.ts'
import { bucketCount } from './exponential.ts'

/** The columns of the cells of `trafficLayout` and `workerLayout`, under the names that they have in the code. */
export function reportColumns(): ReportColumns {
  return { pair: columnsOf(trafficLayout), host: columnsOf(workerLayout) }
}

/** The cells that are not zero, each after its number. */
export function sparse(cells: Float64Array): SparseCells {
  const pairs: number[] = []
  for (let at = 0; at < cells.length; at += 1) {
    const value = cells[at] ?? 0
    if (value !== 0) pairs.push(at, value)
  }
  return pairs
}

function columnsOf<All extends Columns>({ columns }: Layout<All>): readonly ReportColumn[] {
  return Object.entries(columns).map(([name, column]) => reportColumn(name, column))
}

function reportColumn(name: string, column: Column): ReportColumn {
  switch (column.kind) {
    case 'count':
    case 'gauge':
      return { name, kind: column.kind }
    case 'split':
      return { name, kind: 'split', label: column.label, values: column.values }
    case 'histogram':
      return { name, kind: 'histogram', boundsSeconds: column.boundsSeconds }
    case 'exponential': {
      const { scale, fromPower } = column.rangeSeconds
      const cells = bucketCount(column.rangeSeconds) + 1
      return { name, kind: 'exponential', scale, offset: fromPower * 2 ** scale, cells }
    }
  }
}
