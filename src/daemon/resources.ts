/**
 * What the process may have, and what of it each data-plane worker gets: descriptors and memory. The main thread keeps a
 * reserve of descriptors for the catalog, the admin API, the log and the resolver, which must go on when connections
 * do not.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { totalmem } from 'node:os'

/** Descriptors that connections never get. */
const RESERVED_DESCRIPTORS = 64

/** Less than this a worker cannot do anything with. */
const LEAST_DESCRIPTORS = 32

/** Share of the process's memory that bytes on their way may occupy. */
const HELD_SHARE = 1 / 4

/** Share of the process's memory that tunnels of peers may occupy, and what one takes, used or not. */
const TUNNEL_SHARE = 1 / 4
const TUNNEL_BYTES = 131_072

/** A worker may have so many of one host, however many workers there are: not each gets the same. */
const LEAST_TUNNELS_PER_HOST = 16

const MIB = 1_048_576

/** What the kernel lets this process have. */
export interface ProcessLimits {
  /** Soft limit of open files. */
  readonly descriptors: number
  /** Descriptors that are open already. */
  readonly openDescriptors: number
  /** Memory of the host, or of the control group if that is less; bytes. */
  readonly memory: number
}

/** Asks the kernel. */
export function readProcessLimits(): ProcessLimits {
  const constrained = process.constrainedMemory()
  const total = totalmem()
  return {
    descriptors: openFilesLimit(readFileSync('/proc/self/limits', 'utf8')),
    openDescriptors: readdirSync('/proc/self/fd').length,
    memory: constrained > 0 ? Math.min(constrained, total) : total,
  }
}

/** The soft limit of open files in the text of `/proc/<pid>/limits`; without bound when the text has none. */
export function openFilesLimit(text: string): number {
  const soft = /^Max open files\s+(\S+)/m.exec(text)?.[1]
  const limit = Number(soft)
  return Number.isFinite(limit) ? limit : Number.MAX_SAFE_INTEGER
}

/** What each of `workers` gets of it. Pure. */
export function workerShare(
  limits: ProcessLimits,
  workers: number,
  heldMiB: number,
): { readonly descriptors: number; readonly heldBytes: number } {
  const free = limits.descriptors - limits.openDescriptors - RESERVED_DESCRIPTORS
  const held = Math.min(heldMiB * MIB, limits.memory * HELD_SHARE)
  return {
    descriptors: Math.max(LEAST_DESCRIPTORS, Math.floor(free / workers)),
    heldBytes: Math.floor(held / workers),
  }
}

/** How many tunnels of peers each of `workers` may have, of all hosts and of one. Pure. */
export function tunnelShare(
  { memory }: Pick<ProcessLimits, 'memory'>,
  workers: number,
  limits: { readonly tunnels: number; readonly tunnelsPerHost: number },
): { readonly tunnels: number; readonly tunnelsPerHost: number } {
  const affordable = Math.floor((memory * TUNNEL_SHARE) / TUNNEL_BYTES / workers)
  const ofHost = Math.max(LEAST_TUNNELS_PER_HOST, Math.ceil(limits.tunnelsPerHost / workers))
  return {
    tunnels: Math.min(limits.tunnels, affordable),
    tunnelsPerHost: Math.min(limits.tunnelsPerHost, ofHost),
  }
}
