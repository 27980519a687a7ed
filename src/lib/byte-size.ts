/**
 * Converts sizes between text (`64KiB`, `2GiB`) and bytes.
 */

const UNITS = [
  ['TiB', 1_024 ** 4],
  ['GiB', 1_024 ** 3],
  ['MiB', 1_024 ** 2],
  ['KiB', 1_024],
] as const

/** The pattern of a size, for a JSON schema. */
export const SIZE_PATTERN = '^[0-9]{1,12}(KiB|MiB|GiB|TiB)$'

/** Bytes of a size such as `2GiB`; undefined when `text` is invalid or too large for an exact number. */
export function parseSize(text: string): number | undefined {
  const match = new RegExp(SIZE_PATTERN).exec(text)
  if (match === null) return undefined
  const unit = UNITS.find(([name]) => name === match[1])?.[1] ?? 1
  const bytes = Number(text.slice(0, -3)) * unit
  return Number.isSafeInteger(bytes) ? bytes : undefined
}

/** The text that {@link parseSize} reads as `bytes`, which must be whole KiB. */
export function formatSize(bytes: number): string {
  for (const [name, unit] of UNITS)
    if (bytes >= unit && bytes % unit === 0) return `${bytes / unit}${name}`
  return `${Math.ceil(bytes / 1_024)}KiB`
}
