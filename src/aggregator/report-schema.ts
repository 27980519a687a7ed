/**
 * Checks a report of a host that nobody trusts. Pure.
 *
 * Written by hand because every host sends one a second. A report that breaks one rule is refused as a whole, with the
 * place of the rule; members that are unknown are ignored and not passed on. Text is passed on without characters that
 * break lines or change the direction of writing. No number is negative, infinite or no number at all.
 */
import { MeshError } from '../lib/errors.ts'
import {
  type HostReport,
  type HostState,
  type Interval,
  type LiveView,
  REPORT_VERSION,
  type ReportColumn,
  type ReportColumns,
  type ReportPair,
  type ReportRecord,
  reportLimits,
  type SparseCells,
  type WorkloadUse,
} from '../model/report.ts'
import {
  checkList,
  checkName,
  checkNumber,
  checkObject,
  checkPattern,
  checkWhole,
  optional,
  refuse,
} from './report-checks.ts'
import { checkFacts } from './report-facts-schema.ts'

/** Bytes in a long time, or anything else that is counted. */
const MAX_COUNT = 1e15

/** Ten years, milliseconds. */
const MAX_AGE_MS = 10 * 366 * 86_400_000

const MAX_SPAN_MS = 366 * 86_400_000

/** What a Date can hold. */
const MAX_CLOCK_MS = 8.64e15

const states: readonly unknown[] = [
  'starting',
  'ready',
  'degraded',
  'draining',
] satisfies readonly HostState[]

/** Edges of histograms, seconds, as exponents of 2: from less than a nanosecond to 30,000 years. */
const MAX_EXPONENT = 40

/** How many cells the rows of a report may have. */
interface Widths {
  readonly pair: number
  readonly host: number
}

/**
 * Checks parsed JSON.
 * @throws MeshError HM_REPORT_INVALID, HM_REPORT_VERSION
 */
export function checkReport(parsed: unknown): HostReport {
  const report = checkObject(parsed, 'the report')
  if (report['version'] !== REPORT_VERSION)
    throw new MeshError(
      'HM_REPORT_VERSION',
      `Cannot take a report of another version than ${REPORT_VERSION}`,
      { hint: 'Update the aggregator before the hosts' },
    )
  const columns = optional(report['columns'], checkColumns)
  const list = checkList(report['records'], reportLimits.records, 'records')
  if (columns === undefined && list.length > 0) refuse('columns', 'must come with records')
  const widths: Widths =
    columns === undefined
      ? { pair: reportLimits.cells, host: reportLimits.cells }
      : { pair: widthOf(columns.pair), host: widthOf(columns.host) }
  const records: ReportRecord[] = []
  let before = 0
  for (let i = 0; i < list.length; i += 1) {
    const record = checkRecord(list[i], widths, `records[${i}]`)
    if (record.sequence <= before) refuse(`records[${i}].sequence`, 'must ascend')
    before = record.sequence
    records.push(record)
  }
  const live = optional(report['live'], (value) => checkLive(value, widths))
  return {
    version: REPORT_VERSION,
    host: checkName(report['host'], 'host'),
    key: checkPattern(report['key'], /^[\w-]{43}$/, 'key'),
    run: checkPattern(report['run'], /^[\w-]{22}$/, 'run'),
    clockMs: checkNumber(report['clockMs'], 'clockMs', MAX_CLOCK_MS),
    layout: checkPattern(report['layout'], /^[\w.:+/=-]{1,128}$/, 'layout'),
    ...(columns !== undefined && { columns }),
    ...(live !== undefined && { live }),
    records,
  }
}

function checkRecord(value: unknown, widths: Widths, where: string): ReportRecord {
  const record = checkObject(value, where)
  const { workloads, facts } = record
  const list = checkList(workloads, reportLimits.services, `${where}.workloads`)
  const checkedFacts = optional(facts, (found) => checkFacts(found, `${where}.facts`))
  return {
    ...checkInterval(record, widths, where),
    sequence: checkWhole(record['sequence'], `${where}.sequence`, 1e12, 1),
    ageMs: checkNumber(record['ageMs'], `${where}.ageMs`, MAX_AGE_MS),
    merged: checkWhole(record['merged'], `${where}.merged`, 1e7, 1),
    workloads: list.map((use, i) => checkWorkload(use, `${where}.workloads[${i}]`)),
    ...(checkedFacts !== undefined && { facts: checkedFacts }),
  }
}

function checkLive(value: unknown, widths: Widths): LiveView {
  const live = checkObject(value, 'live')
  const { state } = live
  const problems = checkList(live['problems'], reportLimits.problems, 'live.problems')
  if (!isState(state)) refuse('live.state', 'must be a state')
  return {
    ...checkInterval(live, widths, 'live'),
    state,
    problems: problems.map((code, i) => checkPattern(code, /^\w{1,64}$/, `live.problems[${i}]`)),
  }
}

function checkInterval(
  value: Readonly<Record<string, unknown>>,
  widths: Widths,
  where: string,
): Interval {
  const names = checkList(value['names'], reportLimits.names, `${where}.names`)
  const checkedNames: string[] = []
  for (let i = 0; i < names.length; i += 1) checkedNames.push(checkListedName(names[i], where, i))
  return {
    spanMs: checkNumber(value['spanMs'], `${where}.spanMs`, MAX_SPAN_MS),
    names: checkedNames,
    pairs: checkPairs(value['pairs'], names.length, widths.pair, where),
    host: checkCells(value['host'], widths.host, where, -1),
  }
}

function checkListedName(value: unknown, where: string, index: number): string {
  if (typeof value === 'string' && value.length <= reportLimits.nameLength && NAME.test(value))
    return value
  return refuse(`${where}.names[${index}]`, 'must be a name')
}

function checkPairs(
  value: unknown,
  names: number,
  width: number,
  where: string,
): readonly ReportPair[] {
  const list = checkList(value, reportLimits.pairs, `${where}.pairs`)
  const pairs: ReportPair[] = []
  for (let i = 0; i < list.length; i += 1) {
    const pair = list[i]
    if (!Array.isArray(pair) || pair.length !== 6)
      return refuse(`${where}.pairs[${i}]`, 'must have 6 members')
    const [reporter, source, destination, active, lost, cells]: unknown[] = pair
    if (
      (reporter !== 0 && reporter !== 1) ||
      !isIndex(source, names) ||
      !isIndex(destination, names) ||
      !isIndex(active, MAX_OPEN) ||
      !isIndex(lost, MAX_OPEN)
    )
      return refuse(`${where}.pairs[${i}]`, 'must name a reporter, two names and two counts')
    pairs.push([reporter, source, destination, active, lost, checkCells(cells, width, where, i)])
  }
  return pairs
}

/** @param pair the pair whose cells they are; -1 for those of the host */
function checkCells(value: unknown, width: number, where: string, pair: number): SparseCells {
  if (isCells(value, width)) return value
  return refuse(
    pair < 0 ? `${where}.host` : `${where}.pairs[${pair}][5]`,
    'must be cells of the columns',
  )
}

function isCells(value: unknown, width: number): value is SparseCells {
  if (!Array.isArray(value)) return false
  const list: readonly unknown[] = value
  if (list.length % 2 !== 0 || list.length > 2 * reportLimits.cells) return false
  for (let i = 0; i < list.length; i += 2) {
    const count = list[i + 1]
    // Not a number fails both comparisons.
    if (!isIndex(list[i], width) || typeof count !== 'number') return false
    if (!(count >= 0 && count <= MAX_COUNT)) return false
  }
  return true
}

function checkWorkload(value: unknown, where: string): WorkloadUse {
  const use = checkObject(value, where)
  const number = (name: string): number | undefined =>
    optional(use[name], (found) => checkNumber(found, `${where}.${name}`, MAX_COUNT))
  const pressure = optional(use['pressure'], (found) => checkPressure(found, `${where}.pressure`))
  const [cpuMs, memoryBytes, tasks, sockets] = [
    number('cpuMs'),
    number('memoryBytes'),
    number('tasks'),
    number('sockets'),
  ]
  return {
    service: checkName(use['service'], `${where}.service`),
    ...(cpuMs !== undefined && { cpuMs }),
    ...(memoryBytes !== undefined && { memoryBytes }),
    ...(tasks !== undefined && { tasks }),
    ...(sockets !== undefined && { sockets }),
    ...(pressure !== undefined && { pressure }),
  }
}

function checkPressure(value: unknown, where: string): NonNullable<WorkloadUse['pressure']> {
  const pressure = checkObject(value, where)
  const share = (name: string): number | undefined =>
    optional(pressure[name], (found) => checkNumber(found, `${where}.${name}`, 1))
  const [cpu, memory, io] = [share('cpu'), share('memory'), share('io')]
  return {
    ...(cpu !== undefined && { cpu }),
    ...(memory !== undefined && { memory }),
    ...(io !== undefined && { io }),
  }
}

function checkColumns(value: unknown): ReportColumns {
  const columns = checkObject(value, 'columns')
  return {
    pair: checkColumnList(columns['pair'], 'columns.pair'),
    host: checkColumnList(columns['host'], 'columns.host'),
  }
}

function checkColumnList(value: unknown, where: string): readonly ReportColumn[] {
  const list = checkList(value, reportLimits.columns, where).map((column, i) =>
    checkColumn(column, `${where}[${i}]`),
  )
  if (new Set(list.map(({ name }) => name)).size !== list.length)
    refuse(where, 'must not have two columns of the same name')
  if (widthOf(list) > reportLimits.cells)
    refuse(where, `must not have more than ${reportLimits.cells} cells`)
  return list
}

function checkColumn(value: unknown, where: string): ReportColumn {
  const column = checkObject(value, where)
  const name = checkPattern(column['name'], /^[A-Za-z_][\w.:]{0,127}$/, `${where}.name`)
  const { kind } = column
  switch (kind) {
    case 'count':
    case 'gauge':
      return { name, kind }
    case 'split':
      return {
        name,
        kind,
        label: checkPattern(column['label'], /^[A-Za-z_]\w{0,127}$/, `${where}.label`),
        values: checkList(column['values'], reportLimits.cells, `${where}.values`).map((found, i) =>
          checkPattern(found, /^[\w.:/+-]{1,128}$/, `${where}.values[${i}]`),
        ),
      }
    case 'histogram':
      return { name, kind, boundsSeconds: checkBounds(column['boundsSeconds'], where) }
    case 'exponential':
      return { name, kind, ...checkExponents(column, where) }
    default:
      return refuse(`${where}.kind`, 'must be a kind of column')
  }
}

function checkBounds(value: unknown, where: string): readonly number[] {
  const bounds = checkList(value, reportLimits.cells, `${where}.boundsSeconds`).map((bound, i) =>
    checkNumber(bound, `${where}.boundsSeconds[${i}]`, 2 ** MAX_EXPONENT),
  )
  if (bounds.some((bound, i) => i > 0 && bound <= (bounds[i - 1] ?? 0)))
    refuse(`${where}.boundsSeconds`, 'must ascend')
  return bounds
}

function checkExponents(
  column: Readonly<Record<string, unknown>>,
  where: string,
): { readonly scale: number; readonly offset: number; readonly cells: number } {
  const cells = checkWhole(column['cells'], `${where}.cells`, reportLimits.cells, 2)
  const { scale, offset } = column
  if (!isInteger(scale) || Math.abs(scale) > 16)
    return refuse(`${where}.scale`, 'must be a whole number from -16 to 16')
  const factor = 2 ** scale
  if (
    !isInteger(offset) ||
    Math.abs(offset) / factor > MAX_EXPONENT ||
    Math.abs(offset + cells) / factor > MAX_EXPONENT
  )
    return refuse(`${where}.offset`, 'must lead to possible durations')
  return { scale, offset, cells }
}

/** Connections, far more than a host can have. */
const MAX_OPEN = 1e9

const NAME = /^[A-Za-z0-9](?:[\w.-]{0,126}[A-Za-z0-9])?$/

/** Number of cells in a row of these columns. */
function widthOf(columns: readonly ReportColumn[]): number {
  let width = 0
  for (const column of columns) {
    if (column.kind === 'split') width += column.values.length
    else if (column.kind === 'histogram') width += column.boundsSeconds.length + 2
    else width += column.kind === 'exponential' ? column.cells : 1
  }
  return width
}

function isIndex(value: unknown, end: number): value is number {
  return typeof value === 'number' && value >= 0 && value < end && Number.isInteger(value)
}

function isInteger(value: unknown): value is number {
  return Number.isInteger(value)
}

function isState(value: unknown): value is HostState {
  return states.includes(value)
}
