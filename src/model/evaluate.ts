/**
 * Whether a source may reach a destination: Consul's intention rules for TCP. Pure.
 *
 * Names are compared as text; only the whole name `*` is a wildcard. Rules are sorted by precedence, so the first match
 * decides. A rule with L7 permissions, or one that cannot be enforced, denies.
 */
import type { Decision, Intention } from './intention.ts'
import type { ServicePolicy } from './snapshot.ts'

/** Decides for one source and destination. `policy` undefined means it is not loaded: denied. */
export function evaluate(source: string, policy: ServicePolicy | undefined): Decision {
  if (policy === undefined)
    return {
      allow: false,
      rule: undefined,
      reason: 'the intentions of the destination are not loaded yet',
    }
  for (const rule of policy.intentions)
    if (appliesTo(rule, source, policy.destination))
      return { allow: isAllowing(rule), rule, reason: `${nameOf(rule)} ${effectOf(rule)}` }
  return {
    allow: policy.defaultPolicy === 'allow',
    rule: undefined,
    reason: `no intention matches, the default policy says ${policy.defaultPolicy}`,
  }
}

/** Whether a rule applies to this pair; the first rule that applies decides. */
export function appliesTo(rule: Intention, source: string, destination: string): boolean {
  return (
    (rule.source === '*' || rule.source === source) &&
    (rule.destination === '*' || rule.destination === destination)
  )
}

function isAllowing(rule: Intention): boolean {
  return rule.undecidable === undefined && rule.action === 'allow'
}

function nameOf({ source, destination, precedence }: Intention): string {
  return `intention ${source} -> ${destination} (precedence ${precedence})`
}

function effectOf(rule: Intention): string {
  return unenforcedPart(rule) ?? `says ${rule.action}`
}

/** Why a rule cannot be enforced for opaque TCP, so that it denies; undefined for a rule that can. */
export function unenforcedPart({ undecidable, action }: Intention): string | undefined {
  if (undecidable !== undefined) return `${undecidable}, which cannot be obeyed`
  return action === undefined ? 'decides by HTTP request, and this is opaque TCP' : undefined
}
