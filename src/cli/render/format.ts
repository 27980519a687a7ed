/**
 * Numbers for people, in the style of kubectl: at most two units, coarser for longer times.
 */

const SECOND = 1_000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

/** A duration: `7s`, `3m5s`, `12m`, `2h5m`, `30h`, `3d4h`, `12d`. Negative values count as zero. */
export function formatAge(ms: number): string {
  const age = Math.max(0, ms)
  if (age < 2 * MINUTE) return `${Math.floor(age / SECOND)}s`
  if (age < 10 * MINUTE) return pairOf(age, MINUTE, 'm', SECOND, 's')
  if (age < 3 * HOUR)
    return age < HOUR ? `${Math.floor(age / MINUTE)}m` : pairOf(age, HOUR, 'h', MINUTE, 'm')
  if (age < 2 * DAY) return `${Math.floor(age / HOUR)}h`
  if (age < 8 * DAY) return pairOf(age, DAY, 'd', HOUR, 'h')
  return `${Math.floor(age / DAY)}d`
}

/** The time since an RFC 3339 timestamp; `?` for an invalid one. */
export function formatSince(time: string, nowMs: number): string {
  const atMs = Date.parse(time)
  return Number.isNaN(atMs) ? '?' : formatAge(nowMs - atMs)
}

/** A point in time, to the second: `2027-01-31T12:00:00Z`. */
export function formatTime(wallMs: number): string {
  return `${new Date(wallMs).toISOString().slice(0, 19)}Z`
}

/** A size: `512B`, `1.5KiB`, `20MiB`. */
export function formatBytes(bytes: number): string {
  const units = ['KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  if (bytes < 1_024) return `${Math.round(bytes)}B`
  let value = bytes / 1_024
  let unit = 0
  // 1023.5 would be rounded to 1024, which is one of the next unit.
  while (value >= 1_023.5 && unit < units.length - 1) {
    value /= 1_024
    unit += 1
  }
  return `${value < 9.95 ? value.toFixed(1) : Math.round(value)}${units[unit]}`
}

/** A round-trip time: `0.2ms`, `14ms`. */
export function formatRoundTrip(ms: number): string {
  return ms < 9.95 ? `${ms.toFixed(1)}ms` : `${Math.round(ms)}ms`
}

/** So many a second: `0`, `<0.1`, `3.4`, `120`. */
export function formatRate(perSecond: number): string {
  if (perSecond <= 0) return '0'
  if (perSecond < 0.05) return '<0.1'
  return perSecond < 9.95 ? perSecond.toFixed(1) : String(Math.round(perSecond))
}

/** A share of 1 as percent: `0%`, `<0.1%`, `2.5%`, `40%`. */
export function formatShare(share: number): string {
  if (share <= 0) return '0%'
  const percent = share * 100
  if (percent < 0.05) return '<0.1%'
  return `${percent < 9.95 ? percent.toFixed(1) : Math.round(percent)}%`
}

function pairOf(
  ms: number,
  big: number,
  bigName: string,
  small: number,
  smallName: string,
): string {
  const whole = Math.floor(ms / big)
  const rest = Math.floor((ms - whole * big) / small)
  return rest === 0 ? `${whole}${bigName}` : `${whole}${bigName}${rest}${smallName}`
}
