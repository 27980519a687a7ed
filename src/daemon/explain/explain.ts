/**
 * Why a connection goes where it goes: the road of one connection, live, refused or hypothetical, told from
 * a host's facts. Pure: facts in, explanation out, the same from a running daemon and from a file.
 *
 * This file is the story; each station is a file of its own beside it. Nothing is decided here by rules of its
 * own: every station asks the function that the data plane, or the kernel's rules, decide by.
 */
import type { ConnectionEntry, RefusedEntry } from '../../model/admin.ts'
import type { Explanation } from '../../model/explanation.ts'
import type { HostFacts } from '../../model/facts.ts'
import {
  arrivalEvidence,
  describeAnswer,
  type Evidence,
  evidenceOf,
  isAskedAndLetIn,
  isLetIn,
} from './answer.ts'
import { describeCaller, describeRemoteCaller, describeUnknownCaller, isCalled } from './caller.ts'
import { describeEntrance } from './capture.ts'
import { describeCertificate, describeLeaf } from './certificate.ts'
import { dialedBy, withRecord } from './connection.ts'
import { describeDelivery, describeOwnDelivery } from './delivery.ts'
import { enterAsOneOf } from './doors.ts'
import { type Asked, Draft } from './draft.ts'
import { describeEndpoints, firstOf, reachedBy } from './endpoint.ts'
import { describeHost } from './host.ts'
import { describePolicy } from './policy.ts'
import { describeRoute, nameOf, ownService } from './route.ts'
import { readTarget, wantedBy } from './target.ts'
import { describeArrivingTunnel, describeTunnel } from './tunnel.ts'

/** What is asked: about a pair that may or may not be connected, or about a connection that is or was. */
export type Question =
  | { readonly kind: 'pair'; readonly from: string; readonly to: string }
  | { readonly kind: 'connection'; readonly connection: ConnectionEntry | RefusedEntry }

/**
 * Explains. Total but for the question itself, and for facts that no daemon has written.
 * @throws MeshError HM_USAGE_DESTINATION when `to` can be no destination; HM_CAPTURE_PLAN_INVALID when no rules
 *   can be made of the capture plan.
 */
export function explain(facts: HostFacts, question: Question): Explanation {
  if (question.kind === 'pair') return explainPair(facts, question.from, question.to)
  const { connection } = question
  return withRecord(explainConnection(facts, connection), connection)
}

/** The caller is on this host, if anybody is: the whole road. Else the part of the destination. */
function explainPair(facts: HostFacts, from: string, to: string): Explanation {
  const asked: Asked = { from, to, connection: null }
  const target = readTarget(facts, to)
  const callers = facts.local.filter((service) => isCalled(service, from))
  const entered = enterAsOneOf(facts, callers, target)
  if (entered === undefined) return explainArrival(facts, asked, nameOf(facts, target))

  const { caller, entrance } = entered
  const source = caller.name
  const draft = new Draft()
  describeHost(draft, facts)
  describeCaller(draft, callers, caller)
  describeEntrance(draft, entrance)

  const found = describeRoute(draft, facts, entrance.wanted ?? wantedBy(target), target)
  if (found === undefined) return draft.finish(facts, asked)
  const { service } = found
  draft.service = service.name
  const chosen = describeEndpoints(draft, facts, service, found.pinned)
  // When nobody would be picked, the rest is told as if somebody were.
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
 * The caller is on another host: what this host knows is its own part, that of the destination.
 * @param name of the service that is called; undefined when the destination is none
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

/** How sure that is. */
function certaintyText(evidence: readonly Evidence[]): string {
  if (isAskedAndLetIn(evidence)) return ': its host says so now'
  if (isLetIn(evidence)) return ': it did lately'
  return '; whether its host and its application agree, --probe asks'
}

/** What would become of such a connection now. */
function explainConnection(facts: HostFacts, connection: ConnectionEntry): Explanation {
  const { id, source, destination, direction } = connection
  if (direction === 'inbound')
    return explainArrival(facts, { from: source, to: destination, connection: id }, destination)
  const to = dialedBy(facts, connection)
  // It has not got so far that anything is known of where it goes.
  if (to === '') return new Draft().finish(facts, { from: source, to, connection: id })
  return explainPair(facts, source, to)
}
