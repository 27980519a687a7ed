/**
 * A record of a report as a row of the store.
 */
import type { ReportColumn, ReportColumns, ReportRecord, SparseCells } from '../../model/report.ts'
import { ByteWriter } from './bytes.ts'
import { meaningsOf } from './cells.ts'
import type { Registry } from './registry.ts'
import { writePair, writeWorkload } from './rows.ts'

/** The numbers of the cells of a layout; -1 for those that are dropped. */
export interface LayoutPlan {
  readonly layout: string
  readonly pair: Int32Array
  readonly host: Int32Array
  /** When the use of the cells was noted. */
  readonly madeAtMs: number
}

/** Who has counted. */
interface Origin {
  readonly host: number
  readonly run: number
  readonly nowMs: number
}

/** Gives the cells of a layout their numbers. */
export function planLayout(
  registry: Registry,
  layout: string,
  columns: ReportColumns,
  { host, nowMs }: Omit<Origin, 'run'>,
): LayoutPlan {
  const plan = (list: readonly ReportColumn[]): Int32Array =>
    Int32Array.from(
      list.flatMap((column) =>
        meaningsOf(column).map((meaning) => registry.cell(meaning, host, nowMs)),
      ),
    )
  return { layout, pair: plan(columns.pair), host: plan(columns.host), madeAtMs: nowMs }
}

/** Writes records; each call uses the same memory. */
export class RecordEncoder {
  readonly #registry: Registry
  readonly #body = new ByteWriter()
  readonly #cells = new ByteWriter()
  readonly #row = new ByteWriter()

  constructor(registry: Registry) {
    this.#registry = registry
  }

  /** @param plan undefined when the record has no cells */
  encode(
    record: ReportRecord,
    plan: LayoutPlan | undefined,
    origin: Origin,
  ): Uint8Array<ArrayBuffer> {
    const { host, run, nowMs } = origin
    const body = this.#body
    body.clear()
    body.whole(run)
    body.whole(record.sequence)
    body.whole(Math.round(record.spanMs))
    this.#writeWorkloads(record, origin)
    this.#writeCells(record.host, plan?.host)
    body.whole(this.#cells.length)
    body.bytes(this.#cells.view())
    const used = new Map<number, number>()
    const nameOf = (index: number): number => {
      let name = used.get(index)
      if (name === undefined) {
        name = this.#registry.name(record.names[index] ?? '', host, nowMs)
        this.#registry.notePresence(host, name, nowMs)
        used.set(index, name)
      }
      return name
    }
    body.whole(record.pairs.length)
    for (const [reporter, source, destination, active, lost, cells] of record.pairs) {
      this.#writeCells(cells, plan?.pair)
      const caller = 2 * nameOf(source) + reporter
      writePair(body, { caller, destination: nameOf(destination), active, lost }, this.#cells)
    }
    this.#row.clear()
    this.#row.whole(body.length)
    this.#row.bytes(body.view())
    return this.#row.copy()
  }

  #writeWorkloads({ workloads, spanMs }: ReportRecord, { host, nowMs }: Origin): void {
    const waited = (share: number | undefined): number | undefined =>
      share === undefined ? undefined : Math.round(share * spanMs)
    this.#body.whole(workloads.length)
    for (const use of workloads)
      writeWorkload(this.#body, {
        service: this.#registry.name(use.service, host, nowMs),
        spanMs: Math.round(spanMs),
        cpuMs: use.cpuMs,
        memoryBytes: use.memoryBytes,
        tasks: use.tasks,
        sockets: use.sockets,
        cpuWaitMs: waited(use.pressure?.cpu),
        memoryWaitMs: waited(use.pressure?.memory),
        ioWaitMs: waited(use.pressure?.io),
      })
  }

  #writeCells(cells: SparseCells, plan: Int32Array | undefined): void {
    this.#cells.clear()
    let before = 0
    for (let i = 0; i + 1 < cells.length; i += 2) {
      const cell = plan?.[cells[i] ?? -1] ?? -1
      if (cell < 0) continue
      this.#cells.signed(cell - before)
      this.#cells.value(cells[i + 1] ?? 0)
      before = cell
    }
  }
}
