/**
 * Parts shared by all our native tables: names, matches, marks, limits. Pure.
 */
import type { Family } from './rules.ts'
import type { KnownCgroup } from './workloads.ts'

/** Settings of the tables that are not part of the plan. */
export interface NftSettings {
  /** Bits of the packet mark that mean "to loopback". */
  readonly mark: number
  /** The cgroups above workloads, and all cgroups beside them. */
  readonly cgroups: readonly KnownCgroup[]
  /** Path of the cgroup v2 mount below /sys/fs/cgroup, ending with a slash; empty where it is that folder. */
  readonly cgroupPrefix: string
  /** How long a connection from before capture is spared without a segment, in seconds. */
  readonly spareSeconds: number
  /** Whether segments extend that time. */
  readonly sparesWhileUsed: boolean
}

/** Our tables. */
export const CAPTURE_TABLE = 'hostmesh'
export const GUARD_TABLE = 'hostmesh_guard'

/** Sets of instances that both tables have. */
export const GUARD_SETS = ['instances', 'known', 'permitted'] as const

/** The words for a family in rules. */
export interface Words {
  readonly family: Family
  readonly n: '4' | '6'
  readonly ip: 'ip' | 'ip6'
  readonly type: 'ipv4_addr' | 'ipv6_addr'
  readonly nfproto: 'ipv4' | 'ipv6'
  /** The address at which capture ports listen. */
  readonly loopback: string
  /** Both addresses and ports of a connection. */
  readonly tuple: string
  /** Key of a set of instances. */
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

/** Maximum number of open connections to instance addresses, for each family. */
export const MAX_OPEN = 524_288

/** An `open` entry expires this long after the caller's FIN: the longest time a closed socket waits for its peer. */
export const FIN_SECONDS = 65
export const RST_SECONDS = 10

/** Adds a chain to a table that is being rendered. */
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

/** Adds our mark to a packet, and keeps other marks. */
export function setMark(mark: number): string {
  return `meta mark set meta mark | ${hex(mark)}`
}

/** Matches packets that have the mark. */
export function hasMark(mark: number): string {
  return `meta mark & ${hex(mark)} == ${hex(mark)}`
}

/** Matches packets that lack the mark. */
export function lacksMark(mark: number): string {
  return `meta mark & ${hex(mark)} != ${hex(mark)}`
}
