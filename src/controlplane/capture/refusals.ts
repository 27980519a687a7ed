/**
 * How often callers without identity were refused, from the kernel's own counters. Pure.
 */
import type { ShownRule } from './backend.ts'

/** Refused connections by what was dialed; they begin at 0 when the rules are replaced. */
export interface Refusals {
  readonly virtual: number
  readonly instance: number
  /** Let out without the mesh. */
  readonly permitted: number
}

/** Sums the reset rules of both families: a reset answers a SYN, so a packet is an attempt. */
export function countRefusals(rules: readonly ShownRule[]): Refusals {
  const sum = (chain: string): number =>
    rules
      .filter((rule) => rule.chain === chain && rule.rule.includes('-j REJECT'))
      .reduce((packets, rule) => packets + rule.packets, 0)
  const permitted = rules
    .filter((rule) => rule.table === 'nat' && rule.rule.includes('hostmesh_permitted'))
    .reduce((packets, rule) => packets + rule.packets, 0)
  return {
    virtual: sum('HOSTMESH_REJECT'),
    instance: sum('HOSTMESH_UNKNOWN'),
    permitted,
  }
}
