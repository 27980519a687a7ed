/**
 * What the rules of `hostmesh policy lint` work on and report. Codes are part of the public interface: docs/policy-lint.md.
 */
import { isRecord } from '../../lib/json-value.ts'

/** All codes with their titles, which are also the headings of docs/policy-lint.md. */
export const lintTitles = {
  HM0001: 'File or entry that cannot be read',
  HM1001: 'Unknown action',
  HM1002: 'Everybody may call everything',
  HM1003: 'Two rules for one pair',
  HM1004: 'Allow that a deny with higher precedence makes void',
  HM1005: 'Name that no service can have',
  HM1006: 'Wildcard inside a name',
  HM1007: 'Action and permissions, or neither',
  HM1008: 'Permissions, which deny opaque TCP',
  HM1009: 'JWT requirements, which deny',
  HM2001: 'Router on a TCP service',
  HM2002: 'Weights of a splitter that do not sum to 100',
  HM2003: 'Redirect of a resolver to itself',
  HM2004: 'Subset without a filter',
  HM2005: 'Subset that no resolver has',
  HM2006: 'Failover of a service to itself',
  HM2007: 'Splitter on a TCP service',
  HM3001: 'Catalog file that hosts would refuse',
} as const

/** One of {@link lintTitles}. */
export type LintCode = keyof typeof lintTitles

/** One finding. */
export interface Finding {
  readonly code: LintCode
  /** An error denies, cuts or opens what was not meant, or is refused by Consul. */
  readonly severity: 'error' | 'warning'
  readonly file: string
  /** The entry, such as `service-intentions db`. */
  readonly where: string
  /** One sentence. */
  readonly message: string
}

/** One config entry, or one intention, with the keys of Consul's API. */
export interface Entry {
  readonly file: string
  /** `service-intentions`, …; `intention` for a single one. */
  readonly kind: string
  readonly name: string
  readonly value: Readonly<Record<string, unknown>>
}

/** A finding about an entry. */
export function finding(
  { file, kind, name }: Entry,
  code: LintCode,
  message: string,
  severity: Finding['severity'] = 'error',
): Finding {
  return { code, severity, file, where: `${kind} ${name}`.trim(), message }
}

/** The objects in a list; empty for anything else. */
export function records(value: unknown): Readonly<Record<string, unknown>>[] {
  return Array.isArray(value) ? value.filter(isRecord) : []
}

/** A text, or an empty one. */
export function textOf(value: unknown): string {
  return typeof value === 'string' ? value : ''
}
