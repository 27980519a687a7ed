/**
 * May this source reach this destination: Consul's intention rules for TCP. Pure.
 *
 * Names are compared as text; only the whole name `*` is a wildcard. Rules come sorted by precedence, so
 * the first match decides. A rule that decides by L7 permissions, or that cannot be obeyed, denies.
 */
import type { Decision, Intention } from '../../model/intention.ts'
import type { ServicePolicy } from '../../model/snapshot.ts'

/** Decides about one pair. `policy` undefined means it is not loaded: denied. */
export function evaluate(source: string, policy: ServicePolicy | undefined): Decision {
  if (policy === undefined)
    return { allow: false, reason: 'the intentions of the destination are not loaded yet' }
  for (const intention of policy.intentions) {
    if (!matches(intention, source, policy.destination)) continue
    const rule = `intention ${intention.source} -> ${intention.destination} (precedence ${intention.precedence})`
    if (intention.undecidable !== undefined)
      return { allow: false, reason: `${rule} ${intention.undecidable}, which cannot be obeyed` }
    if (intention.action === undefined)
      return { allow: false, reason: `${rule} decides by HTTP request, and this is opaque TCP` }
    return { allow: intention.action === 'allow', reason: `${rule} says ${intention.action}` }
  }
  return {
    allow: policy.defaultPolicy === 'allow',
    reason: `no intention matches, the default policy says ${policy.defaultPolicy}`,
  }
}

function matches(intention: Intention, source: string, destination: string): boolean {
  return (
    (intention.source === '*' || intention.source === source) &&
    (intention.destination === '*' || intention.destination === destination)
  )
}
