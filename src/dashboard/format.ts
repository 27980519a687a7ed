/**
 * Numbers, sizes and times for people, in the units of the command line (src/cli/render/format.ts). Pure. What nobody
 * has reported is a dash, never a zero.
 */

/** What stands for a figure that is not known. */
export const UNKNOWN = '–'

const SECOND = 1_000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

/** A number of things: `0`, `7`, `1.2k`, `35k`, `1.2M`. */
export function formatCount(value: number | null): string {
  if (value === null) return UNKNOWN
  if (value < 1_000)
    return value < 9.95 && value % 1 !== 0 ? value.toFixed(1) : `${Math.round(value)}`
  return scaled(value, 1_000, ['k', 'M', 'G', 'T'])
}

/** Events a second: `0/s`, `0.3/s`, `1.2k/s`. */
export function formatRate(perSecond: number | null): string {
  if (perSecond === null) return UNKNOWN
  if (perSecond > 0 && perSecond < 0.05) return '<0.1/s'
  return `${formatCount(perSecond)}/s`
}

/** A size: `512B`, `1.5KiB`, `20MiB`. */
export function formatBytes(bytes: number | null): string {
  if (bytes === null) return UNKNOWN
  return bytes < 1_024
    ? `${Math.round(bytes)}B`
    : scaled(bytes, 1_024, ['KiB', 'MiB', 'GiB', 'TiB', 'PiB'])
}

/** Bytes a second: `1.5KiB/s`. */
export function formatByteRate(perSecond: number | null): string {
  return perSecond === null ? UNKNOWN : `${formatBytes(perSecond)}/s`
}

/** A latency: `0.2ms`, `14ms`, `1.5s`. */
export function formatLatency(ms: number | null | undefined): string {
  if (ms === null || ms === undefined) return UNKNOWN
  if (ms < 9.95) return `${ms.toFixed(1)}ms`
  if (ms < 999.5) return `${Math.round(ms)}ms`
  return ms < 9_950 ? `${(ms / SECOND).toFixed(1)}s` : `${Math.round(ms / SECOND)}s`
}

/** A share, 0 to 1: `0%`, `<0.01%`, `0.25%`, `12%`. */
export function formatShare(share: number | null): string {
  if (share === null) return UNKNOWN
  const percent = share * 100
  if (percent === 0) return '0%'
  if (percent < 0.01) return '<0.01%'
  if (percent < 1) return `${percent.toFixed(2)}%`
  return percent < 9.95 ? `${percent.toFixed(1)}%` : `${Math.round(percent)}%`
}

/** Processor cores: `0.02`, `1.5`. */
export function formatCores(cores: number | null): string {
  if (cores === null) return UNKNOWN
  return cores < 9.995 ? cores.toFixed(2) : cores.toFixed(1)
}

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

/** The time of day of the reader: `12:03:04`. */
export function formatClock(wallMs: number): string {
  const date = new Date(wallMs)
  return [date.getHours(), date.getMinutes(), date.getSeconds()].map(twoDigits).join(':')
}

/** A point in time of the reader: `2027-01-31 12:03:04`. */
export function formatMoment(wallMs: number): string {
  const date = new Date(wallMs)
  const day = [date.getFullYear(), date.getMonth() + 1, date.getDate()].map(twoDigits).join('-')
  return `${day} ${formatClock(wallMs)}`
}

/** A text that has at most so many characters. */
export function shorten(text: string, length: number): string {
  const characters = Array.from(text)
  return characters.length <= length ? text : `${characters.slice(0, length - 1).join('')}…`
}

/** `1 host`, `2 hosts`. */
export function plural(count: number, word: string): string {
  return `${formatCount(count)} ${word}${count === 1 ? '' : 's'}`
}

function twoDigits(value: number): string {
  return String(value).padStart(2, '0')
}

function scaled(value: number, base: number, units: readonly string[]): string {
  let scaledValue = value / base
  let unit = 0
  while (scaledValue >= base - 0.5 && unit < units.length - 1) {
    scaledValue /= base
    unit += 1
  }
  const text = scaledValue < 9.95 ? scaledValue.toFixed(1) : String(Math.round(scaledValue))
  return `${text}${units[unit]}`
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
