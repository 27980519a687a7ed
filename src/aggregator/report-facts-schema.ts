/**
 * Checks the facts of a report. Pure. The rules are those of `report-schema.ts`.
 */
import {
  type HostState,
  type ReportedFacts,
  type ReportedIntention,
  type ReportedPolicy,
  type ReportedProblem,
  type ReportedService,
  reportLimits,
} from '../model/report.ts'
import {
  checkBoolean,
  checkChoice,
  checkList,
  checkName,
  checkNumber,
  checkObject,
  checkPattern,
  checkText,
  optional,
  refuse,
} from './report-checks.ts'

/** Services, destinations, problems and intentions together: the facts are kept in memory. */
const MAX_ENTRIES = 20_000

/** A hundred years, milliseconds. */
const MAX_LIFE_MS = 100 * 366 * 86_400_000

const MAX_COUNT = 1e15

const WORD = /^[\w.+-]{1,128}$/

/** Letters, digits and marks of identifiers: no space, quote or bracket but those of IPv6. */
const IDENTIFIER = /^[\w.:/@+=[\]%~-]{1,400}$/

const states = ['starting', 'ready', 'degraded', 'draining'] as const satisfies readonly HostState[]

/** @throws MeshError HM_REPORT_INVALID */
export function checkFacts(value: unknown, where: string): ReportedFacts {
  const facts = checkObject(value, where)
  const word = (name: string): string => checkPattern(facts[name], WORD, `${where}.${name}`)
  const problems = checkList(facts['problems'], reportLimits.problems, `${where}.problems`)
  const services = checkList(facts['services'], reportLimits.services, `${where}.services`).map(
    (service, i) => checkService(service, `${where}.services[${i}]`),
  )
  let entries = 0
  for (const { upstreams, policy } of services)
    entries += 1 + upstreams.length + (policy?.intentions.length ?? 0)
  if (entries > MAX_ENTRIES) refuse(where, `must not have more than ${MAX_ENTRIES} entries`)
  const zone = optional(facts['zone'], (found) => checkText(found, `${where}.zone`))
  const trustDomain = optional(facts['trustDomain'], (found) =>
    checkPattern(found, WORD, `${where}.trustDomain`),
  )
  const tunnels = checkObject(facts['tunnels'], `${where}.tunnels`)
  return {
    version: word('version'),
    nodeVersion: word('nodeVersion'),
    datacenter: word('datacenter'),
    ...(zone !== undefined && { zone }),
    startedMsAgo: checkNumber(facts['startedMsAgo'], `${where}.startedMsAgo`, MAX_LIFE_MS),
    state: checkChoice(facts['state'], states, `${where}.state`),
    workers: checkNumber(facts['workers'], `${where}.workers`, 10_000),
    ...(trustDomain !== undefined && { trustDomain }),
    problems: problems.map((problem, i) => checkProblem(problem, `${where}.problems[${i}]`)),
    services,
    capture: checkCapture(facts['capture'], `${where}.capture`),
    tunnels: {
      sessions: checkNumber(tunnels['sessions'], `${where}.tunnels.sessions`, MAX_COUNT),
      peers: checkNumber(tunnels['peers'], `${where}.tunnels.peers`, MAX_COUNT),
    },
  }
}

function checkProblem(value: unknown, where: string): ReportedProblem {
  const problem = checkObject(value, where)
  return {
    code: checkPattern(problem['code'], /^\w{1,64}$/, `${where}.code`),
    message: checkText(problem['message'], `${where}.message`),
    blocks: checkBoolean(problem['blocks'], `${where}.blocks`),
  }
}

function checkService(value: unknown, where: string): ReportedService {
  const service = checkObject(value, where)
  const target = optional(service['target'], (found) =>
    checkPattern(found, IDENTIFIER, `${where}.target`),
  )
  const certificate = optional(service['certificate'], (found) =>
    checkCertificate(found, `${where}.certificate`),
  )
  const health = optional(service['health'], (found) =>
    checkChoice(found, ['passing', 'warning', 'critical'] as const, `${where}.health`),
  )
  const policy = optional(service['policy'], (found) => checkPolicy(found, `${where}.policy`))
  return {
    name: checkName(service['name'], `${where}.name`),
    id: checkText(service['id'], `${where}.id`),
    ...(target !== undefined && { target }),
    protocol: checkPattern(service['protocol'], WORD, `${where}.protocol`),
    captured: checkBoolean(service['captured'], `${where}.captured`),
    ...(certificate !== undefined && { certificate }),
    ...(health !== undefined && { health }),
    upstreams: checkList(service['upstreams'], reportLimits.services, `${where}.upstreams`).map(
      (name, i) => checkName(name, `${where}.upstreams[${i}]`),
    ),
    ...(policy !== undefined && { policy }),
  }
}

function checkCertificate(
  value: unknown,
  where: string,
): NonNullable<ReportedService['certificate']> {
  const certificate = checkObject(value, where)
  const { leftMs } = certificate
  return {
    // Below zero when it has expired.
    leftMs:
      typeof leftMs === 'number' && leftMs < 0
        ? -checkNumber(-leftMs, `${where}.leftMs`, MAX_LIFE_MS)
        : checkNumber(leftMs, `${where}.leftMs`, MAX_LIFE_MS),
    lifeMs: checkNumber(certificate['lifeMs'], `${where}.lifeMs`, MAX_LIFE_MS),
    spiffeId: checkPattern(certificate['spiffeId'], IDENTIFIER, `${where}.spiffeId`),
  }
}

function checkPolicy(value: unknown, where: string): ReportedPolicy {
  const policy = checkObject(value, where)
  const list = checkList(policy['intentions'], reportLimits.intentions, `${where}.intentions`)
  return {
    defaultAction: checkAction(policy['defaultAction'], `${where}.defaultAction`),
    intentions: list.map((rule, i) => checkIntention(rule, `${where}.intentions[${i}]`)),
  }
}

function checkIntention(value: unknown, where: string): ReportedIntention {
  const rule = checkObject(value, where)
  return {
    source: checkRuleName(rule['source'], `${where}.source`),
    destination: checkRuleName(rule['destination'], `${where}.destination`),
    action: checkAction(rule['action'], `${where}.action`),
    precedence: checkNumber(rule['precedence'], `${where}.precedence`, 1_000_000),
  }
}

function checkRuleName(value: unknown, where: string): string {
  return value === '*' ? value : checkName(value, where)
}

function checkAction(value: unknown, where: string): 'allow' | 'deny' {
  return checkChoice(value, ['allow', 'deny'] as const, where)
}

function checkCapture(value: unknown, where: string): ReportedFacts['capture'] {
  const capture = checkObject(value, where)
  const backend = optional(capture['backend'], (found) =>
    checkPattern(found, WORD, `${where}.backend`),
  )
  const inSync = optional(capture['inSync'], (found) => checkBoolean(found, `${where}.inSync`))
  const plainInbound = optional(capture['plainInbound'], (found) =>
    checkNumber(found, `${where}.plainInbound`, MAX_COUNT),
  )
  return {
    mode: checkChoice(capture['mode'], ['off', 'on'] as const, `${where}.mode`),
    ...(backend !== undefined && { backend }),
    ...(inSync !== undefined && { inSync }),
    ...(plainInbound !== undefined && { plainInbound }),
  }
}
