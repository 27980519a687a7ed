/**
 * Which time is looked at: the last seconds, a span, or a moment of the past, chosen on a line that shows where traffic and
 * failures were.
 */
import type { ComponentChild } from 'preact'
import { useMemo, useRef } from 'preact/hooks'

import type { HistoryDocument } from '../model/fleet.ts'
import { stepMs } from './clock.ts'
import { formatAge, formatMoment, formatRate } from './format.ts'
import { change, view } from './location.ts'
import { iso, spanOf, spans } from './time-range.ts'
import { HALF_MINUTE_MS, useDocument } from './use-document.ts'

/** Spans of figures; '' is what the page takes by itself. */
const windows = ['10s', '1m', '5m', '1h', '6h', '1d'] as const

const SLIDER_STEPS = 360
const LINE_HEIGHT = 26
/** While the slider moves, the document is asked for after this long without a movement. */
const SETTLE_MS = 120

/** The controls, below the navigation of every page. */
export function Timeline(): ComponentChild {
  const { page, params } = view.value
  const at = params['at']
  const span = spanOf(params)
  // The live events are of services; everything else is of the last minute.
  const isSeconds = page === 'graph' && at === undefined && params['group'] === undefined
  return (
    <section class="timeline" aria-label="Time">
      <button
        type="button"
        class={`button live${at === undefined ? ' chosen' : ''}`}
        aria-pressed={at === undefined}
        onClick={() => change({ at: undefined }, 'push')}
      >
        Live
      </button>
      <label class="select">
        <span class="only-read">Span of the figures</span>
        <select
          value={params['window'] ?? ''}
          onChange={(event) => change({ window: event.currentTarget.value }, 'push')}
        >
          <option value="">{isSeconds ? 'last seconds' : 'last minute'}</option>
          {windows.map((name) => (
            <option key={name} value={name}>
              last {name}
            </option>
          ))}
        </select>
      </label>
      <Slider at={at} span={span} />
      <label class="select">
        <span class="only-read">Length of the time line</span>
        <select
          value={params['span'] ?? '1h'}
          onChange={(event) =>
            change({ span: event.currentTarget.value === '1h' ? '' : event.currentTarget.value })
          }
        >
          {spans.map(([name]) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      </label>
    </section>
  )
}

function Slider({
  at,
  span,
}: {
  readonly at: string | undefined
  readonly span: number
}): ComponentChild {
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined)
  const stepLength = span / SLIDER_STEPS
  // The line moves on by whole steps, so that it and its question rest between them.
  const end = Math.ceil(stepMs.value / stepLength) * stepLength
  const from = end - span
  const query = useMemo(() => ({ from: iso(from), to: iso(end) }), [from, end])
  const { document } = useDocument('history', query, HALF_MINUTE_MS)
  const chosen = at === undefined ? end : Date.parse(at)
  const text =
    at === undefined ? 'live' : `${formatMoment(chosen)}, ${formatAge(stepMs.value - chosen)} ago`
  const choose = (value: number): void => {
    clearTimeout(timer.current)
    timer.current = setTimeout(
      () => change({ at: value >= end - stepLength / 2 ? undefined : iso(value) }),
      SETTLE_MS,
    )
  }
  return (
    <div class="slider">
      <Line document={document} />
      <input
        type="range"
        min={from}
        max={end}
        step={stepLength}
        value={chosen}
        aria-label="Moment that is looked at"
        aria-valuetext={text}
        onInput={(event) => choose(Number(event.currentTarget.value))}
      />
      <span class="ends-of-line">
        <span>−{formatAge(span)}</span>
        <span class={at === undefined ? '' : 'strong'}>{text}</span>
      </span>
    </div>
  )
}

/** Connections opened as an area, failed ones below it in red, steps without any report as gaps. */
function Line({ document }: { readonly document: HistoryDocument | null }): ComponentChild {
  const shapes = useMemo(() => (document === null ? null : linePaths(document)), [document])
  if (shapes === null) return <svg class="line-chart" aria-hidden="true" />
  return (
    <svg
      class="line-chart"
      viewBox={`0 0 ${SLIDER_STEPS} ${LINE_HEIGHT}`}
      preserveAspectRatio="none"
      aria-hidden="true"
    >
      <title>Up to {formatRate(shapes.most)} opened</title>
      <path class="area" d={shapes.opened} />
      <path class="failed" d={shapes.failed} />
      <path class="gap" d={shapes.gaps} />
    </svg>
  )
}

function linePaths({ series, at }: HistoryDocument): {
  readonly opened: string
  readonly failed: string
  readonly gaps: string
  readonly most: number
} {
  const count = Math.max(1, at.length)
  const width = SLIDER_STEPS / count
  const most = Math.max(0.001, ...series.openedPerSecond.map((value) => value ?? 0))
  const [opened, failed, gaps]: [string[], string[], string[]] = [[], [], []]
  for (const index of at.keys()) {
    const value = series.openedPerSecond[index] ?? null
    const x = (index * width).toFixed(2)
    if (value === null) {
      gaps.push(`M${x} ${LINE_HEIGHT - 1}h${width.toFixed(2)}`)
      continue
    }
    opened.push(bar(x, width, (value / most) * (LINE_HEIGHT - 2)))
    const bad = (series.errorsPerSecond[index] ?? 0) + (series.deniedPerSecond[index] ?? 0)
    // One failure among many is to be seen.
    if (bad > 0) failed.push(bar(x, width, Math.max(2.5, (bad / most) * (LINE_HEIGHT - 2))))
  }
  return { opened: opened.join(''), failed: failed.join(''), gaps: gaps.join(''), most }
}

function bar(x: string, width: number, height: number): string {
  return `M${x} ${LINE_HEIGHT}v${(-height).toFixed(2)}h${width.toFixed(2)}v${height.toFixed(2)}z`
}
