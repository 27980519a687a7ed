/**
 * Counts what iptables rules have refused, from the kernel's counters. Pure.
 */
import type { CaptureCounts, ShownRule } from './backend.ts'
import { REFUSE_CHAIN, setNames, UNITS_CHAIN } from './iptables-words.ts'

/** Sums the rules of both families. A SYN is answered with a reset, so one packet is one attempt. */
export function countRefusals(rules: readonly ShownRule[]): Omit<CaptureCounts, 'full' | 'spared'> {
  const sum = (isCounted: (rule: ShownRule) => boolean): number =>
    rules.filter(isCounted).reduce((packets, rule) => packets + (rule.packets ?? 0), 0)
  const refusedIn = (chain: string): number =>
    sum((rule) => rule.chain === chain && rule.rule.includes('-j REJECT'))
  return {
    refusedVirtual: refusedIn('HOSTMESH_REJECT'),
    refusedInstance: refusedIn('HOSTMESH_UNKNOWN'),
    guarded: refusedIn(REFUSE_CHAIN),
    permitted: sum(({ table, rule }) => table === 'nat' && rule.includes(setNames.permitted.v4)),
    waited: sum(({ chain, rule }) => chain === UNITS_CHAIN && rule.includes('-j DROP')),
  }
}
