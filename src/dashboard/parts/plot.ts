/**
 * One uPlot chart, loaded when the first one is shown: its look, and what it is fed.
 */
import uPlot from 'uplot'

import { formatClock, formatMoment, UNKNOWN } from '../format.ts'
import { colourOf } from '../theme.ts'

/** A line of a chart. */
export interface Line {
  readonly name: string
  /** A colour of the style sheet, such as `--accent`. */
  readonly colour: string
  readonly values: readonly (number | null)[]
  readonly isFilled?: boolean
}

/** What a chart shows. */
export interface PlotData {
  /** Ends of the steps, milliseconds since the epoch. */
  readonly atMs: readonly number[]
  readonly lines: readonly Line[]
  /** Hosts whose reports for a step are missing. */
  readonly missing: readonly number[]
  readonly format: (value: number) => string
  readonly isBytes: boolean
}

const HEIGHT = 150
/** Steps of an axis of bytes: 1, 2, 4, ... of each unit. */
const byteSteps = Array.from({ length: 50 }, (_, power) => 2 ** power)
const AXIS_WIDTH = 62
const DAY_MS = 86_400_000
const FONT = '11px system-ui, sans-serif'

/** A chart in an element; it is as wide as the element. */
export class Plot {
  readonly #element: HTMLElement
  readonly #resize: ResizeObserver
  #plot: uPlot
  #data: PlotData

  constructor(element: HTMLElement, data: PlotData) {
    this.#element = element
    this.#data = data
    this.#plot = this.#make()
    this.#resize = new ResizeObserver(() => {
      const width = element.clientWidth
      if (width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT })
    })
    this.#resize.observe(element)
  }

  /** Shows other figures of the same lines. */
  set(data: PlotData): void {
    this.#data = data
    this.#plot.setData(aligned(data))
  }

  /** Draws with the colours of the other theme. */
  repaint(): void {
    this.#plot.destroy()
    this.#plot = this.#make()
  }

  end(): void {
    this.#resize.disconnect()
    this.#plot.destroy()
  }

  #make(): uPlot {
    const axis = { stroke: colourOf('--faint'), font: FONT, ticks: { show: false } }
    const grid = { stroke: colourOf('--line'), width: 1 }
    const format = (value: number | null): string =>
      value === null ? UNKNOWN : this.#data.format(value)
    return new uPlot(
      {
        width: Math.max(200, this.#element.clientWidth),
        height: HEIGHT,
        cursor: { sync: { key: 'history' }, y: false, points: { size: 6 } },
        legend: { live: true },
        scales: {
          x: { time: true },
          y: { range: (_plot, _min, most) => [0, Math.max(most * 1.1, 1e-3)] },
        },
        axes: [
          {
            ...axis,
            grid: { show: false },
            size: 26,
            space: 70,
            values: (_plot, at) => at.map((s) => clock(s, at)),
          },
          {
            ...axis,
            grid,
            size: AXIS_WIDTH,
            space: 34,
            ...(this.#data.isBytes ? { incrs: byteSteps } : {}),
            values: (_plot, at) => at.map(format),
          },
        ],
        series: [
          {
            label: 'at',
            value: (_plot, at: number | null) => (at === null ? UNKNOWN : this.#moment(at * 1_000)),
          },
          ...this.#data.lines.map(({ name, colour, isFilled }) => ({
            label: name,
            stroke: colourOf(colour),
            width: 1.5,
            ...(isFilled === true
              ? { fill: `color-mix(in srgb, ${colourOf(colour)} 16%, transparent)` }
              : {}),
            points: { show: false },
            spanGaps: false,
            value: (_plot: uPlot, value: number | null) => format(value),
          })),
        ],
        hooks: {
          drawClear: [(plot) => this.#shadeMissing(plot)],
          ready: [showLatest],
          setData: [showLatest],
          setLegend: [showLatest],
        },
      },
      aligned(this.#data),
      this.#element,
    )
  }

  #moment(ms: number): string {
    const { atMs } = this.#data
    const isShort = (atMs.at(-1) ?? 0) - (atMs[0] ?? 0) < DAY_MS
    return isShort ? formatClock(ms) : formatMoment(ms).slice(5, 16)
  }

  /** Steps of which reports are missing are grey: a low figure there says little. */
  #shadeMissing(plot: uPlot): void {
    const { atMs, missing } = this.#data
    const { ctx, bbox } = plot
    ctx.save()
    ctx.fillStyle = colourOf('--shade')
    for (const [index, hosts] of missing.entries()) {
      const [end, start] = [atMs[index], atMs[index - 1] ?? atMs[index]]
      if (hosts === 0 || end === undefined || start === undefined) continue
      const left = plot.valToPos(start / 1_000, 'x', true)
      const width = Math.max(2, plot.valToPos(end / 1_000, 'x', true) - left)
      ctx.fillRect(left, bbox.top, width, bbox.height)
    }
    ctx.restore()
  }
}

/** Without a pointer on the chart its legend says the latest figures. */
function showLatest(plot: uPlot): void {
  const last = plot.data[0].length - 1
  if ((plot.cursor.idx ?? null) === null && plot.legend.idx !== last && last >= 0)
    plot.setLegend({ idx: last }, false)
}

function clock(seconds: number, all: readonly number[]): string {
  const spanMs = ((all.at(-1) ?? 0) - (all[0] ?? 0)) * 1_000
  const text = formatMoment(seconds * 1_000)
  if (spanMs > 2 * 86_400_000) return text.slice(5, 10)
  return formatClock(seconds * 1_000).slice(0, spanMs < 120_000 ? 8 : 5)
}

function aligned({ atMs, lines }: PlotData): uPlot.AlignedData {
  return [atMs.map((ms) => ms / 1_000), ...lines.map(({ values }) => [...values])]
}
