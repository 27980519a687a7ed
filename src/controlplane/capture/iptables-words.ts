/**
 * Parts of our rules in the syntax of `iptables-save`: names of chains and sets, matches, targets. Pure.
 */
import { MeshError } from '../../lib/errors.ts'
import type { WorkloadSelector } from '../../model/service.ts'
import { type CaptureMatch, type Family, loopbackRange } from './rules.ts'

/** Prefix of all our chains; no other chain is ever deleted. */
export const CHAIN_PREFIX = 'HOSTMESH_'

/** The chain that separates newly started processes from known ones: renewed when a cgroup is created. */
export const UNITS_CHAIN: string = `${CHAIN_PREFIX}UNITS`

/** The last chain of everything that the guard refuses, so that one rule counts it. */
export const REFUSE_CHAIN: string = `${CHAIN_PREFIX}REFUSE`

/**
 * The sets that rules match against, by family.
 *
 *     instances   `ip,port` of instances: diverted
 *     permitted   the subset that may be reached without the mesh now
 *     guarded     instances again: un-diverted traffic of workloads to them is refused. A separate set, so that
 *                 emptying `instances` does not bypass the guard; filled later, so that open connections are listed
 *     spared      `ip,port,ip`: open since before capture, or permitted when it began
 *     intact      every address. When it is empty, another program has flushed all sets
 */
export const setNames = {
  instances: { v4: 'hostmesh_instances', v6: 'hostmesh_instances6' },
  permitted: { v4: 'hostmesh_permitted', v6: 'hostmesh_permitted6' },
  guarded: { v4: 'hostmesh_guarded', v6: 'hostmesh_guarded6' },
  spared: { v4: 'hostmesh_spared', v6: 'hostmesh_spared6' },
  intact: { v4: 'hostmesh_intact', v6: 'hostmesh_intact6' },
} as const satisfies Record<string, Record<Family, string>>

/** What a set holds. */
export type SetKind = keyof typeof setNames

/** One rule of a chain: the packets that it matches, and what becomes of them. */
export type Line = readonly [match: string, target: string]

/** In every rule of ours, for people who read the rules. */
const TAG = '-m comment --comment hostmesh'

/** A refused caller receives a reset immediately, as if no process listened there. */
export const RESET = 'REJECT --reject-with tcp-reset'

/** The same for a packet of another protocol. */
export const UNREACHABLE: Record<Family, string> = {
  v4: 'REJECT --reject-with icmp-port-unreachable',
  v6: 'REJECT --reject-with icmp6-port-unreachable',
}

/** `--syn` and `! --syn`, as iptables-save prints them. */
export const FIRST_SEGMENT = '-m tcp --tcp-flags FIN,SYN,RST,ACK SYN'
export const LATER_SEGMENT = '-m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN'

/** Connections that begin, and those that connection tracking has forgotten. */
export const UNKNOWN_TO_TRACKING = '-m conntrack ! --ctstate ESTABLISHED'

/** Segments of a socket that has no owner because its process closed it. Resets are excluded: our rules send them. */
export const ORPHAN = '-m tcp --tcp-flags SYN,RST NONE -m owner ! --socket-exists'

/** Packets that nat has diverted, and connections that it has diverted. */
export const DIVERTED = '-m conntrack --ctstate DNAT'

/** The listener has IP_TRANSPARENT, which needs CAP_NET_ADMIN: only the daemon can have such a socket. */
export const OWN_SOCKET = '-m socket --transparent --nowildcard'

/** The multiport match takes 15 slots; a range uses two. */
const MULTIPORT_SLOTS = 15

/** Matches destinations in a set of addresses, or connections in the set of spared ones. */
export function inSet(kind: Exclude<SetKind, 'intact'>, family: Family): string {
  const numbers = kind === 'spared' ? 'src,src,dst' : 'dst,dst'
  return `-m set --match-set ${setNames[kind][family]} ${numbers}`
}

/** The target that removes a connection from the set of spared ones. */
export function unspare(family: Family): string {
  return `SET --del-set ${setNames.spared[family]} src,src,dst`
}

/** Matches everything while the sets are empty: another program has flushed them. */
export function notIntact(family: Family): string {
  return `-m set ! --match-set ${setNames.intact[family]} dst`
}

/** The words of each condition in one line; only own ports may need several lines. */
export function matchesOf(matches: readonly CaptureMatch[], family: Family): string[] {
  return matches.flatMap((match): string[] => {
    switch (match.kind) {
      case 'daemon':
        return [`-p tcp -m owner --uid-owner ${match.uid}`]
      case 'loopback':
        return [`-d ${loopbackRange[family]} -p tcp`]
      case 'ownPort':
        return ownPortMatches(match.ports)
      case 'permitted':
        return [`-p tcp ${inSet('permitted', family)}`]
      case 'caller':
        return [callerMatch(match.selector, family)]
      case 'mesh':
        throw new MeshError('HM_CAPTURE_PLAN_INVALID', 'A mesh destination is a jump here')
    }
  })
}

function callerMatch(selector: WorkloadSelector, family: Family): string {
  if (selector.kind === 'cgroup') return cgroupMatch(selector.path)
  if (selector.kind === 'user') return `-p tcp -m owner --uid-owner ${Number(selector.user)}`
  return `-s ${selector.ip}/${family === 'v4' ? 32 : 128} -p tcp`
}

/** Matches processes in a cgroup or below it. */
export function cgroupMatch(path: string): string {
  return `-p tcp -m cgroup --path "${path.replaceAll('\\', '\\\\')}"`
}

/** A rule without its chain. */
export function tagged(match: string, target: string): string {
  return `${match === '' ? '' : `${match} `}${TAG} -j ${target}`
}

/** Matches connections to a port of the daemon on one of this host's addresses; the ports in ascending order. */
function ownPortMatches(ports: readonly number[]): string[] {
  return portGroups(ports).map((group) => `-p tcp -m addrtype --dst-type LOCAL ${group}`)
}

/** Ports in ascending order, in as few matches as possible. */
export function portGroups(ports: readonly number[]): string[] {
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
    if (words.length > 0) matches.push(`-m multiport --dports ${words.join(',')}`)
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
