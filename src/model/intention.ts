/**
 * Consul's intentions: may a source service reach a destination service.
 */

/**
 * One rule. `action` is undefined when the rule decides by L7 permissions only, or names an action that
 * we do not know: for a TCP destination both deny.
 */
export interface Intention {
  /** Service name or `*`. */
  readonly source: string
  /** Service name or `*`. */
  readonly destination: string
  readonly action: 'allow' | 'deny' | undefined
  /** Consul's number: exact/exact 9, wildcard source 8, wildcard destination 6, both 5. Higher decides first. */
  readonly precedence: number
}

/** What holds when no intention matches. */
export type DefaultPolicy = 'allow' | 'deny'

/** The outcome of evaluating intentions, with the sentence operators see. */
export interface Decision {
  readonly allow: boolean
  /** Which rule decided, e.g. `intention web -> db (precedence 9) allows`. */
  readonly reason: string
}

/** Consul's precedence for a rule, for catalogs that do not carry the number. */
export function precedenceOf(source: string, destination: string): number {
  if (destination === '*') return source === '*' ? 5 : 6
  return source === '*' ? 8 : 9
}
