/**
 * What /proc says of the hops: CPU time and resident memory of a process and its descendants, and the
 * bytes that reached a network namespace. The parsers are pure; the readers are synchronous, so that the
 * figures of both hops are taken within microseconds of each other.
 */
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { MeshError } from '../../src/lib/errors.ts'

/** User and system time of `/proc/<pid>/stat`, in clock ticks, all threads of the process together. */
export function parseCpuTicks(stat: string): number {
  // The second field is the command in parentheses and may hold spaces and parentheses itself.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  const ticks = Number(fields[11]) + Number(fields[12])
  if (Number.isNaN(ticks))
    throw new MeshError('HM_BENCH_PROC', `Cannot read CPU time from "${stat}"`)
  return ticks
}

/** Resident set of `/proc/<pid>/status`, in kB (1024 bytes). */
export function parseRssKb(status: string): number {
  const match = /^VmRSS:\s+(\d+) kB$/m.exec(status)
  if (match === null)
    throw new MeshError('HM_BENCH_PROC', 'Cannot find VmRSS: the process has ended')
  return Number(match[1])
}

/** Bytes received by all interfaces but loopback, from `/proc/<pid>/net/dev`. */
export function parseReceivedBytes(netDev: string): number {
  let total = 0
  for (const [, name, received] of netDev.matchAll(/^\s*([^\s:]+):\s*(\d+)/gm))
    if (name !== 'lo') total += Number(received)
  return total
}

let ticksPerSecond: number | undefined

/** CPU microseconds used so far by these processes and their living descendants. */
export function cpuMicroseconds(pids: readonly number[]): number {
  ticksPerSecond ??= Number(execFileSync('getconf', ['CLK_TCK'], { encoding: 'utf8' }))
  return (sumOver(pids, (pid) => parseCpuTicks(read(pid, 'stat'))) / ticksPerSecond) * 1e6
}

/** Resident kB of one process and its living descendants. */
export function rssKb(pid: number): number {
  return sumOver([pid], (each) => parseRssKb(read(each, 'status')))
}

/** Bytes received so far from outside by the network namespace that `pid` lives in. */
export function receivedBytes(pid: number): number {
  return parseReceivedBytes(read(pid, 'net/dev'))
}

/** Of the processes and their descendants; of these some may end meanwhile, tools that a daemon runs. */
function sumOver(pids: readonly number[], of: (pid: number) => number): number {
  const found = [...pids]
  let total = 0
  // The list grows while it is walked.
  for (const [index, pid] of found.entries())
    try {
      for (const thread of threadsOf(pid)) found.push(...childrenOf(pid, thread))
      total += of(pid)
    } catch (error) {
      if (index < pids.length) throw error
    }
  return total
}

function threadsOf(pid: number): readonly string[] {
  try {
    return readdirSync(`/proc/${pid}/task`)
  } catch (error) {
    throw gone(pid, error)
  }
}

function childrenOf(pid: number, thread: string): readonly number[] {
  try {
    const children = readFileSync(`/proc/${pid}/task/${thread}/children`, 'utf8')
    return children
      .split(' ')
      .filter((child) => child !== '')
      .map(Number)
  } catch {
    // A thread may end between the listing and here; its children are then those of another thread.
    return []
  }
}

function read(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, 'utf8')
  } catch (error) {
    throw gone(pid, error)
  }
}

function gone(pid: number, cause: unknown): MeshError {
  return new MeshError('HM_BENCH_PROC', `Cannot measure process ${pid}: it has ended`, { cause })
}
