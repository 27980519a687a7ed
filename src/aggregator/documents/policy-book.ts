/**
 * What the intentions say about a pair, by the function with which hosts decide, from the rules that the hosts of the
 * destination have reported. Pure.
 */
import { evaluate } from '../../model/evaluate.ts'
import type { EdgePolicy, PolicyRule } from '../../model/fleet.ts'
import type { Decision, Intention } from '../../model/intention.ts'
import type { ReportedPolicy } from '../../model/report.ts'
import type { ServicePolicy } from '../../model/snapshot.ts'
import type { HostReading } from '../fleet-store.ts'

/** Rules of one service, and how many hosts have reported them. */
interface Known {
  readonly policy: ServicePolicy
  hosts: number
}

/** The rules of all services. */
export class PolicyBook {
  /** By destination, the newest first. */
  readonly #known = new Map<string, Known[]>()

  constructor(hosts: readonly HostReading[]) {
    const newestFirst = hosts.toSorted((a, b) => (b.factsAtMs ?? 0) - (a.factsAtMs ?? 0))
    for (const { facts } of newestFirst)
      for (const { name, policy: reported } of facts?.services ?? []) {
        if (reported === undefined) continue
        const policy = servicePolicy(name, reported)
        const all = this.#known.get(name) ?? []
        if (all.length === 0) this.#known.set(name, all)
        // Hosts that follow the catalog have the same rules: they are judged once.
        const same = all.find((known) => isSame(known.policy, policy))
        if (same === undefined) all.push({ policy, hosts: 1 })
        else same.hosts += 1
      }
  }

  /** The rules for the callers of a service, as they were reported last; undefined where no host has. */
  of(destination: string): ServicePolicy | undefined {
    return this.#known.get(destination)?.[0]?.policy
  }

  /** The decision for a pair; null where no host of the destination has reported its rules. */
  decide(source: string, destination: string): EdgePolicy | null {
    const all = this.#known.get(destination) ?? []
    const [first, ...others] = all
    if (first === undefined) return null
    const decision = evaluate(source, first.policy)
    let differing = 0
    for (const { policy, hosts } of others)
      if (evaluate(source, policy).allow !== decision.allow) differing += hosts
    const { allow, reason } = decision
    return {
      allow,
      rule: ruleOf(decision),
      reason:
        differing === 0
          ? reason
          : `${reason}; ${differing} of ${all.reduce((sum, { hosts }) => sum + hosts, 0)} hosts that run ${destination} decide otherwise`,
    }
  }
}

function isSame(a: ServicePolicy, b: ServicePolicy): boolean {
  return (
    a.defaultPolicy === b.defaultPolicy &&
    a.intentions.length === b.intentions.length &&
    a.intentions.every((rule, i) => {
      const other = b.intentions[i]
      return (
        other !== undefined &&
        rule.source === other.source &&
        rule.destination === other.destination &&
        rule.action === other.action &&
        rule.precedence === other.precedence
      )
    })
  )
}

function ruleOf({ rule }: Decision): PolicyRule | null {
  return rule === undefined ? null : policyRule(rule)
}

/** A rule as documents state it; one without an action denies. */
export function policyRule({ source, destination, action, precedence }: Intention): PolicyRule {
  return { source, destination, action: action ?? 'deny', precedence }
}

/** The same for the same facts, which are those of many documents. */
function servicePolicy(destination: string, policy: ReportedPolicy): ServicePolicy {
  const known = policies.get(policy)
  if (known?.destination === destination) return known
  const sorted = {
    destination,
    defaultPolicy: policy.defaultAction,
    intentions: policy.intentions.toSorted((a, b) => b.precedence - a.precedence),
  }
  policies.set(policy, sorted)
  return sorted
}

const policies = new WeakMap<ReportedPolicy, ServicePolicy>()
