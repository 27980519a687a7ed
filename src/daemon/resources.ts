/**
 * Limits of the process, and each data-plane worker's share of them: descriptors and memory. The main thread has a
 * reserve of descriptors for the catalog, the admin API, the log and the resolver, which must work even if connections
 * do not.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { totalmem } from 'node:os'

/** Descriptors that connections never use. */
const RESERVED_DESCRIPTORS = 64

/** Minimum descriptors of a worker; with fewer it could do nothing. */
const LEAST_DESCRIPTORS = 32

/** Share of the process's memory for bytes in transit. */
const HELD_SHARE = 1 / 4

/** Share of the process's memory for tunnels of peers, and the memory of one tunnel, used or not. */
const TUNNEL_SHARE = 1 / 4
const TUNNEL_BYTES = 131_072

/** Minimum tunnels of one host per worker, however many workers there are: the spread is uneven. */
const LEAST_TUNNELS_PER_HOST = 16

const MIB = 1_048_576

/** The kernel's limits for this process. */
export interface ProcessLimits {
  /** Soft limit of open files. */
  readonly descriptors: number
  /** Descriptors that are open already. */
  readonly openDescriptors: number
  /** Memory of the host, or of the control group if that is less; bytes. */
  readonly memory: number
}

/** Reads the limits from the kernel. */
export function readProcessLimits(): ProcessLimits {
  const constrained = process.constrainedMemory()
  const total = totalmem()
  return {
    descriptors: openFilesLimit(readFileSync('/proc/self/limits', 'utf8')),
    openDescriptors: readdirSync('/proc/self/fd').length,
    memory: constrained > 0 ? Math.min(constrained, total) : total,
  }
}

/** The soft limit of open files in the text of `/proc/<pid>/limits`; unlimited when the text has none. */
export function openFilesLimit(text: string): number {
  const soft = /^Max open files\s+(\S+)/m.exec(text)?.[1]
  const limit = Number(soft)
  return Number.isFinite(limit) ? limit : Number.MAX_SAFE_INTEGER
}

/** The share of each of `workers` in the limits. Pure. */
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

/** The maximum tunnels of peers for each of `workers`, in total and of one host. Pure. */
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
