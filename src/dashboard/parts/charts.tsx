/**
 * Figures over time: charts, and the same figures as a table.
 */
import type { ComponentChild } from 'preact'
import { useEffect, useMemo, useRef, useState } from 'preact/hooks'

import type { HistoryDocument } from '../../model/fleet.ts'
import { formatByteRate, formatCount, formatLatency, formatMoment, formatRate } from '../format.ts'
import { view } from '../location.ts'
import { theme } from '../theme.ts'
import { historyRange, spanOf } from '../time-range.ts'
import { HALF_MINUTE_MS, useDocument } from '../use-document.ts'
import type { Line, Plot, PlotData } from './plot.ts'
import { Empty, Waiting } from './words.tsx'

/** What the history is of. */
export interface Subject {
  readonly source?: string
  readonly destination?: string
  readonly host?: string
}

interface ChartSpec {
  readonly isBytes?: boolean
  readonly title: string
  readonly lines: readonly Line[]
  readonly format: (value: number | null) => string
}

/** The golden signals of a service, a pair or a host over the span of the time line. */
export function Charts({ subject }: { readonly subject: Subject }): ComponentChild {
  const { from, to } = historyRange(view.value.params)
  const { source, destination, host } = subject
  const query = useMemo(
    () => ({ source, destination, host, from, to }),
    [source, destination, host, from, to],
  )
  const loaded = useDocument('history', query, HALF_MINUTE_MS)
  const { document } = loaded
  const specs = useMemo(() => (document === null ? [] : specsOf(document)), [document])
  if (document === null) return <Waiting loaded={loaded} what="the history" />
  const isEmpty = document.series.openedPerSecond.every((value) => value === null)
  if (isEmpty)
    return (
      <Empty
        title="No history in this span"
        coverage={document.coverage}
        otherwise="No host has reported connections in the span of the time line."
      />
    )
  const lateSteps = document.missing.filter((hosts) => hosts > 0).length
  return (
    <section aria-label="History">
      <Waiting loaded={loaded} what="the history" />
      <div class="charts">
        {specs.map((spec) => (
          <Chart key={spec.title} spec={spec} document={document} />
        ))}
      </div>
      {lateSteps > 0 && (
        <p class="faint">
          Shaded: reports of some hosts have not come (yet) for {lateSteps} of{' '}
          {document.missing.length} steps.
        </p>
      )}
      <FiguresTable document={document} specs={specs} />
    </section>
  )
}

function specsOf({ series }: HistoryDocument): ChartSpec[] {
  return [
    {
      title: 'Connections',
      format: formatRate,
      lines: [
        { name: 'opened', colour: '--accent', values: series.openedPerSecond, isFilled: true },
        { name: 'failed', colour: '--bad', values: series.errorsPerSecond },
        { name: 'denied', colour: '--deny', values: series.deniedPerSecond },
      ],
    },
    {
      title: 'Time until connected',
      format: formatLatency,
      lines: [
        { name: 'p99', colour: '--warn', values: series.connectP99Ms },
        { name: 'p50', colour: '--accent', values: series.connectP50Ms },
      ],
    },
    {
      title: 'Time until the first byte',
      format: formatLatency,
      lines: [
        { name: 'p99', colour: '--warn', values: series.firstByteP99Ms },
        { name: 'p50', colour: '--accent', values: series.firstByteP50Ms },
      ],
    },
    {
      title: 'Bytes',
      format: formatByteRate,
      isBytes: true,
      lines: [
        { name: 'sent', colour: '--accent', values: series.sentBytesPerSecond },
        { name: 'received', colour: '--second', values: series.receivedBytesPerSecond },
      ],
    },
    {
      title: 'Open connections',
      format: formatCount,
      lines: [{ name: 'open', colour: '--accent', values: series.active, isFilled: true }],
    },
  ]
}

function Chart(props: {
  readonly spec: ChartSpec
  readonly document: HistoryDocument
}): ComponentChild {
  const { spec, document } = props
  const place = useRef<HTMLDivElement>(null)
  const plot = useRef<Plot | null>(null)
  const [isFailed, setFailed] = useState(false)
  const data: PlotData = useMemo(
    () => ({
      atMs: document.at.map((at) => Date.parse(at)),
      lines: spec.lines,
      missing: document.missing,
      format: spec.format,
      isBytes: spec.isBytes ?? false,
    }),
    [document, spec],
  )
  const latest = useRef(data)
  latest.current = data
  useEffect(() => {
    let isGone = false
    void import('./plot.ts')
      .then(({ Plot }) => {
        if (!isGone && place.current !== null)
          plot.current = new Plot(place.current, latest.current)
      })
      .catch(() => setFailed(true))
    const stop = theme.subscribe(() => plot.current?.repaint())
    const scheme = matchMedia('(prefers-color-scheme: dark)')
    const repaint = (): void => plot.current?.repaint()
    scheme.addEventListener('change', repaint)
    return () => {
      isGone = true
      stop()
      scheme.removeEventListener('change', repaint)
      plot.current?.end()
      plot.current = null
    }
  }, [])
  useEffect(() => plot.current?.set(data), [data])
  return (
    <figure class="chart">
      <figcaption>{spec.title}</figcaption>
      {isFailed && (
        <p class="faint">The charts could not be loaded; the table below has the figures.</p>
      )}
      <div
        class="plot"
        ref={place}
        role="img"
        aria-label={`${spec.title} over time; the table of figures below says the same`}
      />
    </figure>
  )
}

function FiguresTable(props: {
  readonly document: HistoryDocument
  readonly specs: readonly ChartSpec[]
}): ComponentChild {
  const { document, specs } = props
  const [isOpen, setOpen] = useState(false)
  const columns = specs.flatMap(({ title, lines, format }) =>
    lines.map((line) => ({ title: `${title}: ${line.name}`, values: line.values, format })),
  )
  const rows = [...document.at.entries()].toReversed()
  return (
    <details onToggle={(event) => setOpen(event.currentTarget.open)}>
      <summary>Figures as a table</summary>
      {isOpen && (
        <section class="table-frame" tabIndex={0} aria-label="Figures over time">
          <table>
            <thead>
              <tr>
                <th scope="col">Until</th>
                {columns.map(({ title }) => (
                  <th key={title} scope="col" class="number">
                    {title}
                  </th>
                ))}
                <th scope="col" class="number">
                  Hosts missing
                </th>
              </tr>
            </thead>
            <tbody>
              {rows.map(([index, at]) => (
                <tr key={at}>
                  <th scope="row">{formatMoment(Date.parse(at))}</th>
                  {columns.map(({ title, values, format }) => (
                    <td key={title} class="number">
                      {format(values[index] ?? null)}
                    </td>
                  ))}
                  <td class="number">{formatCount(document.missing[index] ?? null)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </section>
      )}
    </details>
  )
}

/** The heading above charts says what they span. */
export function chartsTitle(params: Readonly<Record<string, string>>): string {
  const hours = spanOf(params) / 3_600_000
  return hours >= 48 ? `${hours / 24} days` : hours === 1 ? 'the last hour' : `${hours} hours`
}
