/**
 * Warnings for operators about the policies of this host, although nothing is broken. Pure.
 */
import type { ServicePolicy, Snapshot } from '../../model/snapshot.ts'

/** Number of services that are named; further ones are counted. */
const MAX_NAMES = 5

/** One sentence each; empty when there is no warning. */
export function policyWarnings(snapshot: Snapshot): readonly string[] {
  const open = [...snapshot.policies.values()].filter(isOpen).map((policy) => policy.destination)
  if (open.length === 0) return []
  const more = open.length > MAX_NAMES ? ` and ${open.length - MAX_NAMES} more` : ''
  return [
    `The default policy of the catalog is allow (in Consul: ACLs are off, or default to allow), so every ` +
      `service that no intention denies may call ${open.slice(0, MAX_NAMES).join(', ')}${more}; ` +
      `intentions.default: deny closes that`,
  ]
}

/** Whether there can be a caller that no intention matches, and that is allowed. */
function isOpen({ defaultPolicy, intentions }: ServicePolicy): boolean {
  return defaultPolicy === 'allow' && !intentions.some((rule) => rule.source === '*')
}
