/**
 * Converts durations between text (`5s`, `200ms`, `1h30m`) and milliseconds.
 */

const UNIT_MS: Record<string, number> = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 }

/** The pattern of a duration, for a JSON schema. */
export const DURATION_PATTERN = '^([0-9]{1,15}(ms|s|m|h|d)){1,5}$'

/** The longest accepted duration, in milliseconds: a year. Longer ones are typing errors. */
export const MAX_DURATION_MS = 365 * 86_400_000

/** Milliseconds of a duration such as `1h30m` or `200ms`; undefined when `text` is invalid or too long. */
export function parseDuration(text: string): number | undefined {
  if (!new RegExp(DURATION_PATTERN).test(text)) return undefined
  let total = 0
  for (const [, amount, unit] of text.matchAll(/(\d+)(ms|s|m|h|d)/g))
    total += Number(amount) * (UNIT_MS[unit ?? ''] ?? 0)
  return total <= MAX_DURATION_MS ? total : undefined
}

/** The shortest text that {@link parseDuration} reads as `ms`; whole milliseconds only. */
export function formatDuration(ms: number): string {
  if (ms === 0) return '0s'
  let rest = Math.round(ms)
  let text = ''
  for (const unit of ['d', 'h', 'm', 's', 'ms']) {
    const size = UNIT_MS[unit] ?? 1
    const amount = Math.floor(rest / size)
    if (amount > 0) text += `${amount}${unit}`
    rest -= amount * size
  }
  return text
}
