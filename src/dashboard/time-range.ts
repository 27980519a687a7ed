/**
 * Which span the time line and the charts show.
 */
import { stepMs } from './clock.ts'

/** Spans of the line, milliseconds. */
export const spans = [
  ['1h', 3_600_000],
  ['6h', 21_600_000],
  ['24h', 86_400_000],
  ['14d', 1_209_600_000],
] as const
const USUAL_SPAN_MS = 3_600_000

/** The span of the line that the address says. */
export function spanOf(params: Readonly<Record<string, string>>): number {
  return spans.find(([name]) => name === params['span'])?.[1] ?? USUAL_SPAN_MS
}

/** From and to of the history of a page: the span that ends at the time that is looked at. */
export function historyRange(params: Readonly<Record<string, string>>): {
  readonly from: string
  readonly to: string
} {
  const at = Date.parse(params['at'] ?? '')
  const end = Number.isNaN(at) ? stepMs.value : at
  return { from: iso(end - spanOf(params)), to: iso(end) }
}

/** As the API takes times. */
export function iso(ms: number): string {
  return new Date(ms).toISOString()
}
