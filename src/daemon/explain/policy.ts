/**
 * Station `policy`: whether this caller may reach this service, by {@link evaluate}, which decides every connection;
 * where it is decided, by which rule, and what would have to change.
 *
 * The destination's host decides. If that is this host, rules that are not loaded deny. If it is another host, the
 * catalog's rules are shown, and without them the answer is `undecided`, never a guess.
 */

import type { Endpoint } from '../../model/endpoint.ts'
import { appliesTo, evaluate } from '../../model/evaluate.ts'
import type { HostFacts } from '../../model/facts.ts'
import type { Intention } from '../../model/intention.ts'
import type { MeshService, ServicePolicy } from '../../model/snapshot.ts'
import { type Evidence, isAllowedByAnswer, isAllowedByProbe } from './answer.ts'
import type { Draft } from './draft.ts'
import { listed } from './words.ts'

/**
 * `chosen` are the instances of which one would be picked: this host decides if all are local. `isHere` gives that
 * answer where it is known without them.
 */
export function describePolicy(
  draft: Draft,
  facts: HostFacts,
  asked: {
    readonly source: string
    readonly service: MeshService
    readonly chosen: readonly Endpoint[]
    readonly isHere?: boolean
    /** What the destination answered or did; it overrides the rules of the catalog. */
    readonly evidence?: readonly Evidence[]
  },
): void {
  const { source, service, chosen } = asked
  const isHere = asked.isHere ?? (chosen.length > 0 && chosen.every(({ local }) => local))
  const known = facts.policies.find(
    ({ destination, origin }) => destination === service.name && (!isHere || origin === 'snapshot'),
  )
  const hosts = [...new Set(chosen.filter(({ local }) => !local).map(({ node }) => node))]
  const decidedAt = isHere ? 'here' : 'destination'
  const { evidence = [] } = asked
  if (known === undefined && !isHere) {
    const reason = `the rules for ${service.name} could not be asked of the catalog`
    draft.policy = { allow: null, decidedAt, reason, intention: null }
    draft.station('policy', 'warning', `Not known here: ${reason}`, [
      `The destination decides: ${listed(hosts) || 'its host'}`,
    ])
    if (isAllowedByAnswer(evidence)) return
    draft.fail(
      'undecided',
      `Whether ${source} may reach ${service.name} is decided at the destination, and is not known here`,
      `On ${listed(hosts) || 'its host'}: hostmesh explain --from ${source} --to ${service.name}`,
    )
    return
  }
  const decision = evaluate(source, known)
  const { rule } = decision
  draft.policy = {
    allow: decision.allow,
    decidedAt,
    reason: decision.reason,
    intention:
      rule === undefined
        ? null
        : {
            source: rule.source,
            destination: rule.destination,
            action: rule.action ?? null,
            precedence: rule.precedence,
          },
  }
  const details = [
    isHere
      ? 'Decided on this host, the destination'
      : `Decided at the destination${hosts.length === 0 ? '' : ` (${listed(hosts)})`}; these are the rules that the catalog has for it`,
    ...(known === undefined ? [] : overruled(source, known, rule)),
  ]
  const verb = decision.allow ? 'Allowed' : 'Denied'
  // The destination's rules decide, and a probe has just shown their result.
  if (!decision.allow && !isHere && isAllowedByProbe(evidence)) {
    draft.station('policy', 'warning', `By the catalog it is denied: ${decision.reason}`, [
      ...details,
      'The destination allows it now: its rules are others, or of another moment',
    ])
    return
  }
  draft.station('policy', decision.allow ? 'good' : 'bad', `${verb}: ${decision.reason}`, details)
  if (!decision.allow)
    draft.fail(
      'denied',
      `${source} may not reach ${service.name}: ${decision.reason}`,
      known === undefined
        ? 'hostmesh status says why the intentions are not loaded'
        : allowingAdvice(facts, source, service.name, rule),
    )
}

/** The rules that also match but have a lower precedence than the deciding one. */
function overruled(
  source: string,
  policy: ServicePolicy,
  rule: Intention | undefined,
): readonly string[] {
  const text = (intention: Intention): string =>
    `${intention.source} -> ${intention.destination} ${intention.action ?? 'by permissions'} (precedence ${intention.precedence})`
  return policy.intentions
    .filter((other) => other !== rule && appliesTo(other, source, policy.destination))
    .map((other) => `Would match too, and comes later: ${text(other)}`)
}

/** How to allow it: in the catalog file, or with Consul's command. */
function allowingAdvice(
  facts: HostFacts,
  source: string,
  destination: string,
  rule: Intention | undefined,
): string {
  const isThere = rule?.source === source && rule.destination === destination
  if (facts.catalog.description.startsWith('file'))
    return isThere
      ? `To allow it, set Action: allow of the intention ${source} -> ${destination} in the catalog file`
      : `To allow it, add an intention ${source} -> ${destination} with Action: allow to the catalog file`
  return `To allow it: consul intention create -allow ${isThere ? '-replace ' : ''}${source} ${destination}`
}
