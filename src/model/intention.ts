/**
 * Consul's intentions: whether a source service may reach a destination service.
 */
import type { IntentionPermission } from './permission.ts'

/**
 * One rule. It has an action, or permissions that decide by HTTP request, or it is undecidable. Only the action `allow`
 * allows opaque TCP: permissions and undecidable rules deny it.
 */
export interface Intention {
  /** Service name or `*`. */
  readonly source: string
  /** Service name or `*`. */
  readonly destination: string
  readonly action: 'allow' | 'deny' | undefined
  /** Consul's number: exact/exact 9, wildcard source 8, wildcard destination 6, both 5. Higher decides first. */
  readonly precedence: number
  /** L7 rules in order of evaluation; only present without an action. */
  readonly permissions?: readonly IntentionPermission[]
  /** The part of the rule that hostmesh cannot enforce, so that the rule denies: `has JWT requirements`. */
  readonly undecidable?: string
}

/** The decision when no intention matches. */
export type DefaultPolicy = 'allow' | 'deny'

/** The outcome of evaluating intentions, with a sentence for operators. */
export interface Decision {
  readonly allow: boolean
  /** The rule that decided; undefined when the default policy decided, or when no rules are loaded. */
  readonly rule: Intention | undefined
  /** For operators, such as `intention web -> db (precedence 9) says allow`. */
  readonly reason: string
}

/** Consul's precedence for a rule, for catalogs that do not have the number. */
export function precedenceOf(source: string, destination: string): number {
  if (destination === '*') return source === '*' ? 5 : 6
  return source === '*' ? 8 : 9
}
