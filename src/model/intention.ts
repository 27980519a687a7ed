/**
 * Consul's intentions: may a source service reach a destination service.
 */
import type { IntentionPermission } from './permission.ts'

/**
 * One rule. It has an action, or permissions that decide by HTTP request, or it is undecidable. Opaque
 * TCP is allowed by the action `allow` only: the other two deny.
 */
export interface Intention {
  /** Service name or `*`. */
  readonly source: string
  /** Service name or `*`. */
  readonly destination: string
  readonly action: 'allow' | 'deny' | undefined
  /** Consul's number: exact/exact 9, wildcard source 8, wildcard destination 6, both 5. Higher decides first. */
  readonly precedence: number
  /** L7 rules in the order in which they decide; only ever there without an action. */
  readonly permissions?: readonly IntentionPermission[]
  /** What of the rule cannot be obeyed, so that it denies: `has JWT requirements`. */
  readonly undecidable?: string
}

/** What holds when no intention matches. */
export type DefaultPolicy = 'allow' | 'deny'

/** The outcome of evaluating intentions, with the sentence operators see. */
export interface Decision {
  readonly allow: boolean
  /** The rule that decided; undefined when it was the default policy, or when none is loaded. */
  readonly rule: Intention | undefined
  /** For operators, such as `intention web -> db (precedence 9) says allow`. */
  readonly reason: string
}

/** Consul's precedence for a rule, for catalogs that do not carry the number. */
export function precedenceOf(source: string, destination: string): number {
  if (destination === '*') return source === '*' ? 5 : 6
  return source === '*' ? 8 : 9
}
