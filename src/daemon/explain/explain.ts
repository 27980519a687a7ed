/**
 * Explains why a connection goes where it goes: the path of one connection, open, refused or hypothetical, from the
 * facts of a host. Pure: the same facts give the same explanation, from a running daemon or from a file.
 *
 * This file calls the stations in order; each is a file in this folder. No station has rules of its own: it calls the
 * function with which the data plane, or the kernel's rules, decide.
 */
import type { ConnectionEntry, RefusedEntry } from '../../model/admin.ts'
import type { Explanation } from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'
import {
  arrivalEvidence,
  describeAnswer,
  type Evidence,
  evidenceOf,
  isAllowedByAnswer,
  isAllowedByProbe,
} from './answer.ts'
import { describeCaller, describeRemoteCaller, describeUnknownCaller, isCalled } from './caller.ts'
import { describeEntry } from './capture.ts'
import { describeCertificate, describeLeaf } from './certificate.ts'
import { dialedBy, withRecord } from './connection.ts'
import { describeDelivery, describeOwnDelivery } from './delivery.ts'
import { type Asked, Draft } from './draft.ts'
import { describeEndpoints, firstOf, reachedBy } from './endpoint.ts'
import { entryOf } from './entry.ts'
import { describeHost } from './host.ts'
import { describePolicy } from './policy.ts'
import { describeRoute, nameOf, ownService } from './route.ts'
import { readTarget, wantedBy } from './target.ts'
import { describeArrivingTunnel, describeTunnel } from './tunnel.ts'

/** The question: about a pair, connected or not, or about a connection, open or ended. */
export type Question =
  | { readonly kind: 'pair'; readonly from: string; readonly to: string }
  | { readonly kind: 'connection'; readonly connection: ConnectionEntry | RefusedEntry }

/**
 * Explains. Fails only for an invalid question, or for facts that no daemon has written.
 * @throws MeshError HM_USAGE_DESTINATION when `to` cannot be a destination; HM_CAPTURE_PLAN_INVALID when the capture
 *   plan cannot be turned into rules.
 */
export function explain(facts: HostFacts, question: Question): Explanation {
  if (question.kind === 'pair') return explainPair(facts, question.from, question.to)
  const { connection } = question
  return withRecord(explainConnection(facts, connection), connection)
}

/** The whole path if the caller is on this host; otherwise only the destination's part. */
function explainPair(facts: HostFacts, from: string, to: string): Explanation {
  const asked: Asked = { from, to, connection: null }
  const target = readTarget(facts, to)
  const callers = facts.local.filter((service) => isCalled(service, from))
  const entered = entryOf(facts, callers, target)
  if (entered === undefined) return explainArrival(facts, asked, nameOf(facts, target))

  const { caller, result: entry } = entered
  const source = caller.name
  const draft = new Draft()
  describeHost(draft, facts)
  describeCaller(draft, callers, caller)
  describeEntry(draft, entry)

  const found = describeRoute(draft, facts, entry.wanted ?? wantedBy(target), target)
  if (found === undefined) return draft.finish(facts, asked)
  const { service } = found
  draft.service = service.name
  const chosen = describeEndpoints(draft, facts, service, found.pinned)
  // If no endpoint would be picked, the rest is explained as if one were.
  const meant = chosen.length > 0 ? chosen : firstOf(service.clusters[0].endpoints)
  const reached = reachedBy(service, meant)
  const remote = meant.filter(({ local }) => !local)
  describeCertificate(draft, facts, {
    source,
    service: reached,
    isNeeded: remote.length > 0 || meant.length === 0,
  })
  describeTunnel(draft, facts, { source, service: reached, remote })
  const evidence = evidenceOf(facts, source, chosen)
  describePolicy(draft, facts, { source, service: reached, chosen: meant, evidence })
  describeDelivery(draft, facts, reached, chosen)
  describeAnswer(draft, evidence, chosen.length)
  const where = remote.length > 0 ? 'through a tunnel' : 'on this host'
  return draft.finish(
    facts,
    asked,
    `${source} may reach ${service.name}, ${where}${certaintyText(evidence)}`,
  )
}

/**
 * For a caller on another host: this host knows only its own part, that of the destination.
 * @param name of the called service; undefined when the destination is none
 */
function explainArrival(facts: HostFacts, asked: Asked, name: string | undefined): Explanation {
  const { from } = asked
  const draft = new Draft()
  const instances = facts.local.filter(
    (service) => service.name === name && service.target !== undefined,
  )
  if (name === undefined || instances.length === 0) {
    describeUnknownCaller(draft, facts, asked)
    return draft.finish(facts, asked)
  }
  draft.service = name
  describeHost(draft, facts)
  const service = ownService(facts, name)
  describeRemoteCaller(draft, facts, from)
  describeLeaf(draft, facts, { service: name, role: 'Callers are shown' })
  describeArrivingTunnel(draft, facts, { source: from, destination: name })
  const chosen = service.clusters[0].endpoints.filter(({ local }) => local)
  const evidence = arrivalEvidence(facts, from, name)
  describePolicy(draft, facts, { source: from, service, chosen, isHere: true })
  describeOwnDelivery(draft, facts, instances)
  describeAnswer(draft, evidence, 1)
  return draft.finish(facts, asked, `${facts.node} lets ${from} reach ${name}`)
}

/** How certain the answer is. */
function certaintyText(evidence: readonly Evidence[]): string {
  if (isAllowedByProbe(evidence)) return ': its host says so now'
  if (isAllowedByAnswer(evidence)) return ': it did lately'
  return '; whether its host and its application agree, --probe asks'
}

/** What would happen to such a connection now. */
function explainConnection(facts: HostFacts, connection: ConnectionEntry): Explanation {
  const { id, source, destination, direction } = connection
  if (direction === 'inbound')
    return explainArrival(facts, { from: source, to: destination, connection: id }, destination)
  const to = dialedBy(facts, connection)
  // The destination is not known yet.
  if (to === '') return new Draft().finish(facts, { from: source, to, connection: id })
  return explainPair(facts, source, to)
}
