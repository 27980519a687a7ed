/**
 * Makes the replies of the mesh's DNS resolver, from a question and the data of the service that it names. Pure.
 *
 *   name                          is
 *   <service>.mesh                the service: A, AAAA, SRV
 *   _<service>._tcp.mesh          the service: SRV
 *   mesh                          the apex of a domain: SOA, NS
 *   the same below virtual.consul and virtual.<datacenter>.consul
 *   anything else                 not served here: REFUSED
 */
import type { Answer } from 'dns-packet'
import { isIpv6 } from '../../model/address.ts'
import type { MeshService } from '../../model/snapshot.ts'
import { isServiceName } from '../../model/spiffe-id.ts'
import { failure, type Question, type Reply, rcodes } from './message.ts'

/** The result of looking up the service that a name means. */
export type ServiceLookup =
  | { readonly kind: 'service'; readonly service: MeshService }
  /** The service exists, and only its addresses are known. */
  | { readonly kind: 'listed'; readonly virtualIps: readonly string[] }
  /** There is no such service. `isParent`: there are services whose names end in `.` and this name. */
  | { readonly kind: 'unknown'; readonly isParent: boolean }
  /** Nothing is known of it now. */
  | { readonly kind: 'unavailable' }

/** The data of a service that a question needs. */
export type ServiceNeeds = 'addresses' | 'instances'

/** The kind of a name, without looking up services. */
export type Place =
  | { readonly kind: 'elsewhere' }
  | { readonly kind: 'apex'; readonly zone: string }
  /** A name that exists only because of names below it (`_tcp`). */
  | { readonly kind: 'between'; readonly zone: string }
  /** A name that no service can have. */
  | { readonly kind: 'nothing'; readonly zone: string }
  | {
      readonly kind: 'service'
      readonly zone: string
      readonly service: string
      /** Whether it was asked for as `_<service>._tcp`. */
      readonly isPortName: boolean
    }

/** How long answers are valid. */
export interface AnswerTimes {
  /** Seconds that a caller may keep an answer. */
  readonly ttlS: number
}

/** TTL of "no such name" and "no such record", seconds: short, since a service may appear at any moment. */
const NEGATIVE_TTL_S = 5

const CLASS_IN = 1

/** The domains served for a datacenter, lower case. */
export function zonesOf(datacenter: string): readonly string[] {
  return ['mesh', 'virtual.consul', `virtual.${datacenter}.consul`]
}

/** Classifies the name of a question. */
export function placeOf(question: Question, zones: readonly string[]): Place {
  if (question.classNumber !== CLASS_IN || isTransfer(question.type)) return { kind: 'elsewhere' }
  const name = question.name.toLowerCase()
  const zone = zones.find((candidate) => name === candidate || name.endsWith(`.${candidate}`))
  if (zone === undefined) return { kind: 'elsewhere' }
  if (name === zone) return { kind: 'apex', zone }
  const below = name.slice(0, -zone.length - 1)
  if (below === '_tcp') return { kind: 'between', zone }
  const port = /^_(.+)\._tcp$/.exec(below)
  const service = port?.[1] ?? below
  return isServiceName(service)
    ? { kind: 'service', zone, service, isPortName: port !== null }
    : { kind: 'nothing', zone }
}

/** The reply for a name that is not a service's. */
export function answerWithout(
  question: Question,
  place: Exclude<Place, { readonly kind: 'service' }>,
  times: AnswerTimes,
): Reply {
  switch (place.kind) {
    case 'elsewhere':
      return failure(rcodes.refused)
    case 'apex':
      return answerApex(question, place.zone, times)
    case 'between':
      return negative(rcodes.noError, place.zone)
    case 'nothing':
      return negative(rcodes.nameError, place.zone)
    default:
      return place satisfies never
  }
}

/** The data needed for the answer: an SRV record has the port of the service's instances. */
export function needsOf(question: Question): ServiceNeeds {
  return question.type === 'SRV' ? 'instances' : 'addresses'
}

/** The reply for the name of a service. */
export function answerService(
  question: Question,
  place: Extract<Place, { readonly kind: 'service' }>,
  lookup: ServiceLookup,
  times: AnswerTimes,
): Reply {
  if (lookup.kind === 'unavailable') return failure(rcodes.serverFailure)
  if (lookup.kind === 'unknown')
    return negative(
      lookup.isParent && !place.isPortName ? rcodes.noError : rcodes.nameError,
      place.zone,
    )
  const ttl = times.ttlS
  if (question.type === 'SRV')
    return lookup.kind === 'service'
      ? answerPort(question, place, lookup.service, ttl)
      : failure(rcodes.serverFailure)
  if (place.isPortName) return negative(rcodes.noError, place.zone)
  const { virtualIps } = lookup.kind === 'service' ? lookup.service : lookup
  const addresses = addressRecords(question.name, virtualIps, ttl)
  // For ANY, one type of record is enough (RFC 8482).
  const type = question.type === 'ANY' ? addresses[0]?.type : question.type
  const answers = addresses.filter((record) => record.type === type)
  return answers.length === 0 ? negative(rcodes.noError, place.zone) : positive(answers)
}

function answerPort(
  question: Question,
  place: Extract<Place, { readonly kind: 'service' }>,
  service: MeshService,
  ttl: number,
): Reply {
  const port = applicationPort(service)
  if (port === undefined) return negative(rcodes.noError, place.zone)
  // In the letter case of the question, like the rest of the answer.
  const target = place.isPortName ? question.name.replace(/^_(.+)\._tcp\./i, '$1.') : question.name
  const srv: Answer = {
    type: 'SRV',
    name: question.name,
    ttl,
    data: { priority: 1, weight: 1, port, target },
  }
  return { ...positive([srv]), additionals: addressRecords(target, service.virtualIps, ttl) }
}

/** The application port that most instances use: a virtual address accepts every port. */
function applicationPort(service: MeshService): number | undefined {
  const ports = Map.groupBy(
    service.clusters[0].endpoints.flatMap(({ application }) =>
      application === undefined ? [] : [application],
    ),
    ({ port }) => port,
  )
  let best: number | undefined
  for (const [port, instances] of ports)
    if (best === undefined || instances.length > (ports.get(best)?.length ?? 0)) best = port
  return best
}

function addressRecords(name: string, virtualIps: readonly string[], ttl: number): Answer[] {
  const record = (ip: string): Answer =>
    isIpv6(ip) ? { type: 'AAAA', name, ttl, data: ip } : { type: 'A', name, ttl, data: ip }
  return virtualIps.map(record).toSorted((a, b) => a.type.length - b.type.length)
}

function answerApex(question: Question, zone: string, times: AnswerTimes): Reply {
  if (question.type === 'SOA' || question.type === 'ANY')
    return positive([{ ...soa(zone), name: question.name }])
  if (question.type === 'NS')
    return positive([{ type: 'NS', name: question.name, ttl: times.ttlS, data: zone }])
  return negative(rcodes.noError, zone)
}

/** A zone transfer would disclose the whole mesh at once. */
function isTransfer(type: string): boolean {
  return type === 'AXFR' || type === 'IXFR'
}

function positive(answers: readonly Answer[]): Reply {
  const rcode = rcodes.noError
  return { rcode, isAuthoritative: true, answers, authorities: [], additionals: [] }
}

function negative(rcode: 0 | 3, zone: string): Reply {
  const authorities = [soa(zone)]
  return { rcode, isAuthoritative: true, answers: [], authorities, additionals: [] }
}

/** As in RFC 6303 for domains that exist on one host only: the domain is its own server. */
function soa(zone: string): Answer {
  return {
    type: 'SOA',
    name: zone,
    ttl: NEGATIVE_TTL_S,
    data: {
      mname: zone,
      rname: 'nobody.invalid',
      serial: 1,
      refresh: 3_600,
      retry: 1_200,
      expire: 604_800,
      minimum: NEGATIVE_TTL_S,
    },
  }
}
