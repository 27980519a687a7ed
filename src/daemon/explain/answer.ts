/**
 * Station `answer`: what the destination's daemons answered to a probe, or how the last connections of the pair ended.
 * The other stations derive from the catalog what should happen; this one shows what does.
 */
import { endingByCode, endingByReset, resetReasons } from '../../model/ending.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import type { Explanation, Verdict } from '../../model/explanation.ts'
import type { HostFacts, OutcomeFacts, ProbeFacts } from '../../model/facts.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { Draft } from './draft.ts'

/** How long the outcome of a connection is used as a prediction for the next one, milliseconds. */
const LATELY_MS = 300_000

/** What is known of one instance, or of one pair at its destination. */
export interface Evidence {
  /** The instance or service, as it is displayed. */
  readonly target: string
  /** `reached`: the host answered, but what it would do with a connection is unknown. */
  readonly outcome: 'delivered' | 'reached' | 'refused'
  readonly isProbe: boolean
  /** For `refused`. */
  readonly verdict: Verdict
  /** Whether a connection that ends like this is not tried with another instance. */
  readonly isFinal: boolean
  /** One line. */
  readonly text: string
}

/** The evidence about the instances that a connection of `source` may be given to. */
export function evidenceOf(
  facts: HostFacts,
  source: string,
  endpoints: readonly Endpoint[],
): readonly Evidence[] {
  return endpoints.flatMap(({ key }) => {
    const probe = facts.probes.find(({ endpoint }) => endpoint === key)
    return probe === undefined
      ? recentEvidence(facts, 'outbound', source, key)
      : [probeEvidence(probe)]
  })
}

/** The outcomes of connections of `source` to a service of this host. */
export function arrivalEvidence(
  facts: HostFacts,
  source: string,
  service: string,
): readonly Evidence[] {
  return recentEvidence(facts, 'inbound', source, service)
}

/** Whether all evidence is that the destination lets the caller in. */
export function isAllowedByAnswer(evidence: readonly Evidence[]): boolean {
  return evidence.length > 0 && evidence.every(({ outcome }) => outcome === 'delivered')
}

/** Whether that evidence comes from probes made just now. */
export function isAllowedByProbe(evidence: readonly Evidence[]): boolean {
  return isAllowedByAnswer(evidence) && evidence.every(({ isProbe }) => isProbe)
}

/** Adds the station; `count` instances may get the connection. Adds nothing without evidence. */
export function describeAnswer(draft: Draft, evidence: readonly Evidence[], count: number): void {
  const refusals = evidence.filter(({ outcome }) => outcome === 'refused')
  const lines = evidence.map(({ text }) => text)
  const [worst] = refusals.toSorted((a, b) => Number(b.isFinal) - Number(a.isFinal))
  if (worst === undefined) {
    const [first, ...rest] = lines
    if (first === undefined) return
    const isProven = isAllowedByAnswer(evidence)
    draft.station('answer', isProven ? 'good' : 'warning', first, rest)
    return
  }
  const others = lines.filter((line) => line !== worst.text)
  const isHopeless = worst.isFinal || refusals.length >= count
  draft.station('answer', isHopeless ? 'bad' : 'warning', worst.text, others)
  if (!isHopeless) return
  draft.fail(
    worst.verdict,
    worst.text,
    ...(worst.isProbe
      ? ['On that host: hostmesh status, and hostmesh connections --refused']
      : ['If that has been mended since: hostmesh explain --probe asks again']),
  )
}

/** For a requested probe without an instance to ask: without this station the answer would seem to rest on a probe. */
export function withoutProbe(explanation: Explanation): Explanation {
  const summary =
    'Nobody was asked: a probe goes to instances that a connection may be given to, and there is none'
  return {
    ...explanation,
    stations: [...explanation.stations, { name: 'answer', mark: 'none', summary, details: [] }],
  }
}

/** Evidence from a probe. */
function probeEvidence(probe: ProbeFacts): Evidence {
  const { endpoint, kind, verdict, reason, flag, code } = probe
  const took = `asked just now, ${Math.max(1, Math.round(probe.tookMs))} ms`
  const because = reason === '' ? '' : `: ${reason}`
  const base = { target: endpoint, isProbe: true, verdict: 'unreachable', isFinal: false } as const
  if (kind === 'handshake')
    return {
      ...base,
      outcome: 'reached',
      text: `${endpoint} is a Connect sidecar: the TLS handshake holds, and no more can be asked (${took})`,
    }
  if (kind === 'old')
    return {
      ...base,
      outcome: 'reached',
      text: `${endpoint} is reached, but its daemon is too old to be asked (${took})`,
    }
  if (kind === 'failed')
    return {
      ...base,
      outcome: 'refused',
      isFinal: !mayTryAnother(code ?? '', flag),
      verdict: verdictOf(flag),
      text: `${endpoint} cannot be asked${because} (${took})`,
    }
  if (verdict === 'delivered')
    return {
      ...base,
      outcome: 'delivered',
      text: `${endpoint} would take the connection (${took})`,
    }
  const reset = resetReasons.find((each) => each === verdict) ?? 'unspecified'
  return {
    ...base,
    outcome: 'refused',
    verdict: verdict === 'denied' ? 'denied' : 'unreachable',
    isFinal: endingByReset[reset].mayRetry !== true,
    text: `${endpoint} would refuse the connection, ${REFUSALS[verdict ?? ''] ?? verdict}${because} (${took})`,
  }
}

const REFUSALS: Readonly<Record<string, string>> = {
  denied: 'denied by its intentions',
  unknownService: 'it has no such instance',
  unreachable: 'its application does not take connections',
  overloaded: 'a limit is reached',
  draining: 'it is shutting down',
}

/** Evidence from the last connections: the latest outcome in all workers, unless it is too old. */
function recentEvidence(
  facts: HostFacts,
  direction: OutcomeFacts['direction'],
  source: string,
  target: string,
): readonly Evidence[] {
  const nowMs = Date.parse(facts.writtenAt)
  const known = facts.outcomes.filter(
    (each) => each.direction === direction && each.source === source && each.target === target,
  )
  const okAtMs = latest(known.map(({ okAt }) => okAt))
  const failures = known.flatMap(({ failure }) => failure ?? [])
  const [failure] = failures.toSorted((a, b) => Date.parse(b.at) - Date.parse(a.at))
  const failedAtMs = latest(failures.map(({ at }) => at))
  const base = { target, isProbe: false, verdict: 'unreachable', isFinal: false } as const
  if (failure !== undefined && failedAtMs > okAtMs) {
    if (nowMs - failedAtMs > LATELY_MS) return []
    const who =
      direction === 'outbound'
        ? `The last connection to ${target}`
        : `The last connection of ${source}`
    return [
      {
        ...base,
        outcome: 'refused',
        verdict: verdictOf(failure.flag),
        isFinal: !mayTryAnother(failure.code, failure.flag),
        text: `${who} ended with ${failure.flag} ${agoText(nowMs - failedAtMs)} ago: ${failure.reason}`,
      },
    ]
  }
  if (nowMs - okAtMs > LATELY_MS) return []
  const what =
    direction === 'outbound'
      ? `${target} took a connection`
      : `A connection of ${source} was delivered`
  return [{ ...base, outcome: 'delivered', text: `${what} ${agoText(nowMs - okAtMs)} ago` }]
}

/** For a stream that was reset only the flag is known; all resets with the same flag have the same answer here. */
function mayTryAnother(code: string, flag: ResponseFlag | null): boolean {
  const ending =
    code === 'HM_TUNNEL_STREAM_RESET'
      ? Object.values(endingByReset).find((each) => each.flag === flag)
      : endingByCode(code)
  return ending?.mayRetry === true
}

function verdictOf(flag: ResponseFlag | null): Verdict {
  return flag === 'DENY' ? 'denied' : 'unreachable'
}

function latest(times: readonly (string | null)[]): number {
  return Math.max(
    Number.NEGATIVE_INFINITY,
    ...times.flatMap((time) => (time === null ? [] : Date.parse(time))),
  )
}

function agoText(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1_000))
  return seconds < 120 ? `${seconds} s` : `${Math.round(seconds / 60)} min`
}
