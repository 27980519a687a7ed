/**
 * The names by which the API may be asked over TCP. A page of another origin can have its own name resolve to a loopback
 * address (DNS rebinding) and then read answers as its own; its Host header shows it. Pure.
 */
import { canonicalIp } from '../model/address.ts'

/** Names of every aggregator. */
const LOOPBACK_NAMES = ['localhost', '127.0.0.1', '::1'] as const

/** A set of names that Host headers are compared with. */
export class HostNames {
  readonly #names: ReadonlySet<string>

  constructor(names: readonly string[]) {
    this.#names = new Set([...LOOPBACK_NAMES, ...names].map(normalized))
  }

  /** Whether a Host header has one of the names, with any port. */
  has(header: string | undefined): boolean {
    const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+))(?::\d{1,5})?$/.exec(header ?? '')
    const name = match?.[1] ?? match?.[2]
    return name !== undefined && this.#names.has(normalized(name))
  }
}

function normalized(name: string): string {
  return canonicalIp(name) ?? name.toLowerCase().replace(/\.$/, '')
}
