/**
 * Checks of single values of a report. Pure.
 */
import { MeshError } from '../lib/errors.ts'
import { reportLimits } from '../model/report.ts'

/** Refuses the report. `where` and `rule` are words of ours, never of the report. @throws MeshError HM_REPORT_INVALID */
export function refuse(where: string, rule: string): never {
  throw new MeshError('HM_REPORT_INVALID', `Cannot take a report: ${where} ${rule}`, {
    hint: 'Run the same version on the host and on the aggregator; a host that goes on like this may be hostile',
  })
}

/** The value checked, or undefined when there is none; null is none, too. */
export function optional<T>(value: unknown, check: (value: unknown) => T): T | undefined {
  return value === undefined || value === null ? undefined : check(value)
}

export function checkObject(value: unknown, where: string): Readonly<Record<string, unknown>> {
  return isObject(value) ? value : refuse(where, 'must be an object')
}

export function checkList(value: unknown, limit: number, where: string): readonly unknown[] {
  if (!Array.isArray(value)) return refuse(where, 'must be a list')
  if (value.length > limit) refuse(where, `must not be longer than ${limit}`)
  return value
}

/** A number from 0 to `max`. */
export function checkNumber(value: unknown, where: string, max: number): number {
  if (typeof value === 'number' && value >= 0 && value <= max) return value
  return refuse(where, `must be a number from 0 to ${max}`)
}

/** A whole number from `min` to `max`. */
export function checkWhole(value: unknown, where: string, max: number, min = 0): number {
  if (typeof value === 'number' && value >= min && value <= max && Number.isInteger(value))
    return value
  return refuse(where, `must be a whole number from ${min} to ${max}`)
}

export function checkBoolean(value: unknown, where: string): boolean {
  return typeof value === 'boolean' ? value : refuse(where, 'must be true or false')
}

export function checkPattern(value: unknown, pattern: RegExp, where: string): string {
  if (typeof value === 'string' && value.length <= reportLimits.textLength && pattern.test(value))
    return value
  return refuse(where, `must match ${pattern.source}`)
}

/** The name of a service or host. */
export function checkName(value: unknown, where: string): string {
  return checkPattern(value, /^[A-Za-z0-9](?:[\w.-]{0,126}[A-Za-z0-9])?$/, where)
}

/** Any text, without characters that break lines, are not seen, or change the direction of writing. */
export function checkText(value: unknown, where: string): string {
  if (typeof value !== 'string') return refuse(where, 'must be text')
  if (value.length > reportLimits.textLength)
    refuse(where, `must not be longer than ${reportLimits.textLength}`)
  return value.toWellFormed().replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, ' ')
}

export function checkChoice<T extends string>(
  value: unknown,
  choices: readonly T[],
  where: string,
): T {
  return (
    choices.find((choice) => choice === value) ?? refuse(where, `must be ${choices.join(' or ')}`)
  )
}

function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}
