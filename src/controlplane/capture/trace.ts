/**
 * What the capture rules do with one connection: walks the very lines that {@link captureRules} makes, as the
 * kernel would, and says which of them matched. Pure.
 *
 * A line with a word that this file does not know ends the walk as `unreadable`: no guess is shown as a fact.
 */

import { isIpv6, type SocketAddress } from '../../model/address.ts'
import { cidrContains, parseCidr } from '../../model/cidr.ts'
import type { WorkloadSelector } from '../../model/service.ts'
import { type CapturePlan, captureRules, instanceSets, type TableRules } from './rules.ts'

/** A connection that a workload is about to make. */
export interface TracedConnection {
  /** As in the plan: users by number. */
  readonly caller: WorkloadSelector
  readonly destination: SocketAddress
  /** Whether the destination is an address of this host. */
  readonly isOwnAddress: boolean
  /** Whether the daemon has put the destination into the set of instance addresses. */
  readonly isKnownInstance: boolean
}

/** What becomes of it, and the rules that decided so, in order. */
export type CaptureTrace =
  | { readonly outcome: 'diverted'; readonly port: number; readonly rules: readonly string[] }
  /** It goes where the application sent it, past the mesh. */
  | { readonly outcome: 'passed'; readonly rules: readonly string[] }
  /** It is answered with a reset. */
  | { readonly outcome: 'rejected'; readonly rules: readonly string[] }
  | { readonly outcome: 'unreadable'; readonly rules: readonly string[] }

/** How a walk through one table ended. */
type Walk =
  | { readonly ended: 'redirect'; readonly port: number }
  | { readonly ended: 'return' | 'reject' | 'unreadable' }

/** Options that take two words, and those that take one. */
const TWO_WORDS = new Set(['--match-set', '--tcp-flags'])

const ONE_WORD = new Set([
  '-A',
  '-d',
  '-s',
  '-p',
  '-m',
  '-j',
  '--comment',
  '--uid-owner',
  '--path',
  '--dst-type',
  '--dports',
  '--ctstate',
  '--to-ports',
  '--reject-with',
])

/**
 * Walks the rules of a plan.
 * @throws MeshError HM_CAPTURE_PLAN_INVALID as {@link captureRules} does.
 */
export function traceCapture(plan: CapturePlan, connection: TracedConnection): CaptureTrace {
  const family = isIpv6(connection.destination.ip) ? 'v6' : 'v4'
  const tables = captureRules(plan, family)
  const isContainer = connection.caller.kind === 'sourceAddress'
  const rules: string[] = []
  const nat = walk(tables, 'nat', isContainer ? 'PREROUTING' : 'OUTPUT', { connection, rules })
  if (nat.ended === 'redirect') return { outcome: 'diverted', port: nat.port, rules }
  if (nat.ended === 'unreadable') return { outcome: 'unreadable', rules }
  const filter = walk(tables, 'filter', isContainer ? 'FORWARD' : 'OUTPUT', { connection, rules })
  if (filter.ended === 'reject') return { outcome: 'rejected', rules }
  return { outcome: filter.ended === 'unreadable' ? 'unreadable' : 'passed', rules }
}

interface Walker {
  readonly connection: TracedConnection
  /** Those that matched. */
  readonly rules: string[]
}

function walk(
  tables: readonly TableRules[],
  table: TableRules['table'],
  hook: string,
  walker: Walker,
): Walk {
  for (const rules of tables) {
    if (rules.table !== table) continue
    const jumps = rules.jumps.filter(({ chain }) => chain === hook).map(({ line }) => line)
    const end = walkChain(rules.chains, jumps, walker)
    if (end !== undefined && end.ended !== 'return') return end
  }
  return { ended: 'return' }
}

/** Undefined at the end of the chain: the walk goes on behind the rule that led here. */
function walkChain(
  chains: TableRules['chains'],
  lines: readonly string[],
  walker: Walker,
): Walk | undefined {
  for (const line of lines) {
    const options = readRule(line)
    const isMatch = options === undefined ? undefined : matches(options, walker.connection)
    if (options === undefined || isMatch === undefined) {
      walker.rules.push(line)
      return { ended: 'unreadable' }
    }
    if (!isMatch) continue
    walker.rules.push(line)
    const target = options.get('-j')?.[0] ?? ''
    if (target === 'REDIRECT')
      return { ended: 'redirect', port: Number(options.get('--to-ports')?.[0]) }
    if (target === 'REJECT') return { ended: 'reject' }
    if (target === 'RETURN') return { ended: 'return' }
    const chain = chains.get(target)
    if (chain === undefined) return { ended: 'unreadable' }
    const end = walkChain(chains, chain, walker)
    if (end !== undefined && end.ended !== 'return') return end
  }
  return undefined
}

/** The options of a line with their words; undefined when one of them is not known here. */
function readRule(line: string): ReadonlyMap<string, readonly string[]> | undefined {
  const words = [...line.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(
    ([, quoted, plain]) => quoted?.replaceAll(/\\(.)/g, '$1') ?? plain ?? '',
  )
  const options = new Map<string, readonly string[]>()
  for (let at = 0; at < words.length; ) {
    const option = words[at] ?? ''
    const count = TWO_WORDS.has(option) ? 2 : ONE_WORD.has(option) ? 1 : undefined
    if (count === undefined) return undefined
    options.set(option, words.slice(at + 1, at + 1 + count))
    at += 1 + count
  }
  return options
}

/** Undefined when an option cannot be judged. */
function matches(
  options: ReadonlyMap<string, readonly string[]>,
  connection: TracedConnection,
): boolean | undefined {
  const { caller, destination } = connection
  for (const [option, [word = '', second = '']] of options) {
    switch (option) {
      case '-p':
        if (word !== 'tcp') return false
        break
      case '-d':
        if (!isWithin(destination.ip, word)) return false
        break
      case '-s':
        if (caller.kind !== 'sourceAddress' || !isWithin(caller.ip, word)) return false
        break
      case '--uid-owner':
        if (caller.kind !== 'user' || Number(caller.user) !== Number(word)) return false
        break
      case '--path':
        if (caller.kind !== 'cgroup' || !`${caller.path}/`.startsWith(`${word}/`)) return false
        break
      case '--dst-type':
        if (word !== 'LOCAL') return undefined
        if (!connection.isOwnAddress) return false
        break
      case '--dports':
        if (!isAmongPorts(destination.port, word)) return false
        break
      case '--match-set':
        if (second !== 'dst,dst' || !Object.values(instanceSets).includes(word)) return undefined
        if (!connection.isKnownInstance) return false
        break
      case '--tcp-flags':
        // What is traced is about to begin: its first segment has SYN and no other of these flags.
        if (word !== 'FIN,SYN,RST,ACK' || second !== 'SYN') return undefined
        break
      case '--ctstate':
        // What is traced is about to begin.
        if (word !== 'NEW') return undefined
        break
      default:
        break
    }
  }
  return true
}

function isWithin(ip: string, range: string): boolean {
  const cidr = parseCidr(range)
  return cidr !== undefined && cidrContains(cidr, ip)
}

function isAmongPorts(port: number, list: string): boolean {
  return list.split(',').some((item) => {
    const [first = '', last = first] = item.split(':')
    return Number(first) <= port && port <= Number(last)
  })
}
