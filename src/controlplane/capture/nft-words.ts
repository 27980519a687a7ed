/**
 * The words that all of our native tables are made of: names, matches, marks, limits. Pure.
 */
import type { Family } from './rules.ts'
import type { KnownCgroup } from './workloads.ts'

/** What the tables are made with beside the plan. */
export interface NftSettings {
  /** Bits of the packet mark that mean "to loopback". */
  readonly mark: number
  /** The cgroups above workloads, and all beside them. */
  readonly cgroups: readonly KnownCgroup[]
  /** Where cgroup v2 is mounted below /sys/fs/cgroup, with a slash at its end; empty where it is that folder. */
  readonly cgroupPrefix: string
  /** How long a connection from before capture is spared without a segment, seconds. */
  readonly spareSeconds: number
  /** Whether segments prolong that. */
  readonly sparesWhileUsed: boolean
}

/** Our tables. */
export const CAPTURE_TABLE = 'hostmesh'
export const GUARD_TABLE = 'hostmesh_guard'

/** Sets of instances that both tables have. */
export const GUARD_SETS = ['instances', 'known', 'permitted'] as const

/** What a family is called in rules. */
export interface Words {
  readonly family: Family
  readonly n: '4' | '6'
  readonly ip: 'ip' | 'ip6'
  readonly type: 'ipv4_addr' | 'ipv6_addr'
  readonly nfproto: 'ipv4' | 'ipv6'
  /** Where capture ports listen. */
  readonly loopback: string
  /** The four numbers of a connection. */
  readonly tuple: string
  /** What a set of instances holds. */
  readonly destination: string
}

/** The words of a family. */
export function words(family: Family): Words {
  const isV4 = family === 'v4'
  const ip = isV4 ? 'ip' : 'ip6'
  return {
    family,
    n: isV4 ? '4' : '6',
    ip,
    type: isV4 ? 'ipv4_addr' : 'ipv6_addr',
    nfproto: isV4 ? 'ipv4' : 'ipv6',
    loopback: isV4 ? '127.0.0.1' : '[::1]',
    tuple: `${ip} saddr . tcp sport . ${ip} daddr . tcp dport`,
    destination: `${ip} daddr . tcp dport`,
  }
}

/** The first segment of a connection. */
export const SYN = 'tcp flags & (fin | syn | rst | ack) == syn'
export const RESET = 'reject with tcp reset'

/** Connections that can be open at a time at instance addresses, of each family. */
export const MAX_OPEN = 524_288

/** An entry of `open` goes so long after the caller's FIN: the longest that a closed socket waits for the other side. */
export const FIN_SECONDS = 65
export const RST_SECONDS = 10

/** Adds a chain to a table in the making. */
export type AddChain = (name: string, lines: readonly string[]) => void

/** A chain of a table. */
export function chainText(name: string, lines: readonly string[]): string {
  return `  chain ${name} {\n${lines.map((line) => `    ${line}\n`).join('')}  }\n`
}

/** The capture port as a packet priority: its lower half is 16 bits, like a port. */
export function classOf(port: number): string {
  return `1:${port.toString(16)}`
}

/** A mark as nft prints it. */
export function hex(mark: number): string {
  return `0x${mark.toString(16).padStart(8, '0')}`
}

/** Gives a packet the mark, beside those of others. */
export function setMark(mark: number): string {
  return `meta mark set meta mark | ${hex(mark)}`
}

/** Matches what has the mark. */
export function hasMark(mark: number): string {
  return `meta mark & ${hex(mark)} == ${hex(mark)}`
}

/** Matches what has not the mark. */
export function lacksMark(mark: number): string {
  return `meta mark & ${hex(mark)} != ${hex(mark)}`
}
