/**
 * The neutral rules of a plan in the words of `iptables-save`: the backend that diverts by REDIRECT. Pure.
 *
 * All of it lives in own chains (`HOSTMESH_*`); the only lines in foreign chains are the jumps to them. Each rule
 * has one spelling, the one the kernel's tools print, so that "is it in place?" is a comparison (saved-rules.ts).
 *
 *     nat OUTPUT     -> HOSTMESH_OUTPUT: daemon, loopback and own ports return; mesh destinations
 *                       -> HOSTMESH_LOCAL: one REDIRECT per cgroup or user, then the default identity
 *     nat PREROUTING -> HOSTMESH_PREROUTING: the same for containers -> HOSTMESH_SOURCE: by address
 *     filter OUTPUT, FORWARD, virtual range only -> HOSTMESH_REJECT: a reset for callers without identity
 *     filter OUTPUT, set of instances, if wanted -> HOSTMESH_UNKNOWN: the same, for new connections
 */
import { MeshError } from '../../lib/errors.ts'
import type { WorkloadSelector } from '../../model/service.ts'
import {
  type CaptureHook,
  type CaptureMatch,
  type CapturePlan,
  type CaptureRule,
  captureRules,
  type Family,
  loopbackRange,
  virtualNetwork,
} from './rules.ts'

/** What all our chains begin with; nothing else is ever deleted. */
export const CHAIN_PREFIX = 'HOSTMESH_'

/** Sets of `ip,port` of instances, filled by the daemon as the catalog changes. */
export const instanceSets: Record<Family, string> = {
  v4: 'hostmesh_instances',
  v6: 'hostmesh_instances6',
}

/** Those of them that may be reached without the mesh now. */
export const permittedSets: Record<Family, string> = {
  v4: 'hostmesh_permitted',
  v6: 'hostmesh_permitted6',
}

/** A line of ours in a chain that is not ours. */
export interface Jump {
  readonly chain: string
  /** The rule as `iptables-save` prints it: `-A OUTPUT ... -j HOSTMESH_OUTPUT`. */
  readonly line: string
  /** 1 is the head of the chain. */
  readonly position: number
}

/** What one table must hold of ours. */
export interface TableRules {
  readonly table: 'filter' | 'nat'
  readonly jumps: readonly Jump[]
  /** Rules by own chain, in order; each a line `-A CHAIN ...`. */
  readonly chains: ReadonlyMap<string, readonly string[]>
}

const TAG = '-m comment --comment hostmesh'
const REJECT = `${CHAIN_PREFIX}REJECT`
const UNKNOWN = `${CHAIN_PREFIX}UNKNOWN`

/** Where the rules of a hook go: those that decide by destination, and behind them those that ask who calls. */
const hookChains: Record<CaptureHook, { readonly chain: string; readonly callers: string }> = {
  output: { chain: `${CHAIN_PREFIX}OUTPUT`, callers: `${CHAIN_PREFIX}LOCAL` },
  prerouting: { chain: `${CHAIN_PREFIX}PREROUTING`, callers: `${CHAIN_PREFIX}SOURCE` },
}

/** What a refused caller sees: as if nothing listened there, at once. */
const RESET = 'REJECT --reject-with tcp-reset'

/** `--syn`, as iptables-save prints it. */
const FIRST_SEGMENT = '-m tcp --tcp-flags FIN,SYN,RST,ACK SYN'

/** The multiport match takes 15 slots; a range uses two. */
const MULTIPORT_SLOTS = 15

/**
 * The tables of one family. The filter table comes first: a virtual address must be refused before
 * anything is diverted, so that there is no moment at which it leaves the host.
 * @throws MeshError HM_CAPTURE_PLAN_INVALID as {@link captureRules} does.
 */
export function iptablesRules(plan: CapturePlan, family: Family): readonly TableRules[] {
  const rules = captureRules(plan, family)
  const virtual = `-d ${virtualNetwork(plan, family)} -p tcp`
  const instances = `-p tcp ${FIRST_SEGMENT} -m set --match-set ${instanceSets[family]} dst,dst`
  const chains = new Map<string, string[]>()
  const jumps: Jump[] = []
  for (const hook of ['output', 'prerouting'] as const) {
    const own = rules.filter((rule) => rule.hook === hook)
    if (hook === 'prerouting' && !own.some(({ action }) => action.kind === 'divert')) continue
    const head = hook.toUpperCase()
    const { chain, callers } = hookChains[hook]
    jumps.push({ chain: head, line: tagged(`-A ${head} -p tcp`, chain), position: 1 })
    const passed = own
      .filter(({ action }) => action.kind === 'pass')
      .flatMap(({ matches }) => matchesOf(matches, family))
      .map((match) => `-A ${chain} ${tagged(match, 'RETURN')}`)
    const owned = [virtual, instances].map((match) => `-A ${chain} ${tagged(match, callers)}`)
    chains.set(chain, [...passed, ...owned])
    chains.set(
      callers,
      own.flatMap((rule) => divertLines(callers, rule, family)),
    )
  }
  return [filterRules(rules, { virtual, instances, family }), { table: 'nat', jumps, chains }]
}

function divertLines(chain: string, { matches, action }: CaptureRule, family: Family): string[] {
  if (action.kind !== 'divert') return []
  const callers = matches.filter(({ kind }) => kind === 'caller')
  const [match = '-p tcp'] = matchesOf(callers, family)
  return [`-A ${chain} ${tagged(match, `REDIRECT --to-ports ${action.port}`)}`]
}

/** Who gets here was diverted by no rule of nat: a caller without identity, or the daemon. */
function filterRules(
  rules: readonly CaptureRule[],
  words: { readonly virtual: string; readonly instances: string; readonly family: Family },
): TableRules {
  const { virtual, instances, family } = words
  const jumps: Jump[] = ['OUTPUT', 'FORWARD'].map((chain) => ({
    chain,
    line: tagged(`-A ${chain} ${virtual}`, REJECT),
    position: 1,
  }))
  const chains = new Map([[REJECT, [`-A ${REJECT} ${tagged(virtual, RESET)}`]]])
  const refusesUnknown = rules.some(
    ({ matches: [match], action }) =>
      action.kind === 'refuse' && match?.kind === 'mesh' && match.what === 'instance',
  )
  if (refusesUnknown) {
    // Only what begins now: what was open before the rules were applied goes on.
    const fresh = `${instances} -m conntrack --ctstate NEW`
    jumps.push({ chain: 'OUTPUT', line: tagged(`-A OUTPUT ${fresh}`, UNKNOWN), position: 2 })
    const passed = rules
      .filter(({ hook, action }) => hook === 'output' && action.kind === 'pass')
      .flatMap(({ matches }) => matches)
      .filter(({ kind }) => kind === 'daemon' || kind === 'permitted')
    chains.set(UNKNOWN, [
      ...matchesOf(passed, family).map((match) => `-A ${UNKNOWN} ${tagged(match, 'RETURN')}`),
      `-A ${UNKNOWN} ${tagged('-p tcp', RESET)}`,
    ])
  }
  return { table: 'filter', jumps, chains }
}

/** One line's worth of words for each condition; only that of own ports may need several lines. */
function matchesOf(matches: readonly CaptureMatch[], family: Family): string[] {
  return matches.flatMap((match): string[] => {
    switch (match.kind) {
      case 'daemon':
        return [`-p tcp -m owner --uid-owner ${match.uid}`]
      case 'loopback':
        return [`-d ${loopbackRange[family]} -p tcp`]
      case 'ownPort':
        return ownPortMatches(match.ports)
      case 'permitted':
        return [`-p tcp -m set --match-set ${permittedSets[family]} dst,dst`]
      case 'caller':
        return [callerMatch(match.selector, family)]
      case 'mesh':
        throw new MeshError('HM_CAPTURE_PLAN_INVALID', 'A mesh destination is a jump here')
    }
  })
}

function callerMatch(selector: WorkloadSelector, family: Family): string {
  if (selector.kind === 'cgroup')
    return `-p tcp -m cgroup --path "${selector.path.replaceAll('\\', '\\\\')}"`
  if (selector.kind === 'user') return `-p tcp -m owner --uid-owner ${Number(selector.user)}`
  return `-s ${selector.ip}/${family === 'v4' ? 32 : 128} -p tcp`
}

function tagged(match: string, target: string): string {
  return `${match} ${TAG} -j ${target}`
}

/** Dialing a port of the daemon on one of this host's addresses; the ports in ascending order. */
function ownPortMatches(ports: readonly number[]): string[] {
  const ranges: { first: number; last: number }[] = []
  for (const port of ports) {
    const range = ranges.at(-1)
    if (range !== undefined && range.last === port - 1) range.last = port
    else ranges.push({ first: port, last: port })
  }
  const matches: string[] = []
  let words: string[] = []
  let slots = 0
  const flush = (): void => {
    if (words.length > 0)
      matches.push(`-p tcp -m addrtype --dst-type LOCAL -m multiport --dports ${words.join(',')}`)
    words = []
    slots = 0
  }
  for (const { first, last } of ranges) {
    const needed = first === last ? 1 : 2
    if (slots + needed > MULTIPORT_SLOTS) flush()
    words.push(first === last ? String(first) : `${first}:${last}`)
    slots += needed
  }
  flush()
  return matches
}
