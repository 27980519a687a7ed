/**
 * What the workloads of this host and the daemon itself use: CPU time, memory, tasks, sockets and pressure, from cgroup v2.
 *
 * A reading costs six small files of the kernel for each workload, and one listing of the host's TCP sockets in all
 * (src/daemon/cgroup-sockets.ts). What the kernel does not give is left out, never zero.
 */
import { readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { type Clock, systemClock } from '../lib/clock.ts'
import { REPORTER_SERVICE, type WorkloadUse } from '../model/report.ts'
import type { LocalService } from '../model/service.ts'
import { countSocketsByCgroup } from './cgroup-sockets.ts'

/** What a meter is built from. */
export interface MeterOptions {
  /** The services of this host; those that are recognized by a cgroup are read, others have no figures of their own. */
  readonly services: readonly Pick<LocalService, 'name' | 'selector'>[]
  /** Where cgroup v2 is mounted, as `findCgroupRoot` says; undefined: only the daemon is read, from /proc. */
  readonly cgroupRoot: string | undefined
  readonly clock?: Clock
  /** Where the kernel shows processes. */
  readonly procRoot?: string
  /** TCP sockets by the number of their cgroup; undefined where they cannot be counted. */
  readonly countSockets?: () => ReadonlyMap<bigint, number> | undefined
}

/** Readings happen on the average at most once in this time. */
const INTERVAL_MS = 10_000

/** A timer of {@link INTERVAL_MS} may fire this early. */
const JITTER_MS = 1_000

/** Cgroups read; further ones are left out. */
const MAX_CGROUPS = 1_000

/** Cgroups read before other work of the thread gets its turn. */
const CGROUPS_PER_TURN = 16

/** Clock ticks of /proc/PID/stat a second: USER_HZ, which is 100 on every Linux. */
const TICKS_PER_SECOND = 100

const RESOURCES = ['cpu', 'memory', 'io'] as const

type Resource = (typeof RESOURCES)[number]

/** Counters at one moment, and present values. */
interface Reading {
  readonly cpuUs: number | undefined
  /** Microseconds in which some task waited, since the cgroup exists. */
  readonly stalledUs: Readonly<Partial<Record<Resource, number>>>
  readonly memoryBytes: number | undefined
  readonly tasks: number | undefined
  readonly sockets: number | undefined
}

/** A reading with what it is of: a successor at the same path is another cgroup. */
interface Known {
  readonly id: string
  readonly reading: Reading
}

/** Reads what workloads use. Differences are between two readings of the same meter. */
export class WorkloadMeter {
  readonly #clock: Clock
  readonly #procRoot: string
  readonly #cgroupRoot: string | undefined
  readonly #countSockets: NonNullable<MeterOptions['countSockets']>
  readonly #namesByPath: ReadonlyMap<string, ReadonlySet<string>>
  readonly #lastByPath = new Map<string, Known>()
  #lastOfDaemon: Known | undefined
  #readAtMs: number | undefined
  #dueAtMs = Number.NEGATIVE_INFINITY

  constructor(options: MeterOptions) {
    const { clock = systemClock, procRoot = '/proc', countSockets = countSocketsByCgroup } = options
    this.#clock = clock
    this.#procRoot = procRoot
    this.#cgroupRoot = options.cgroupRoot
    this.#countSockets = countSockets
    const namesByPath = new Map<string, Set<string>>()
    for (const { name, selector } of options.services) {
      if (selector?.kind !== 'cgroup') continue
      const names = namesByPath.get(selector.path) ?? new Set()
      if (namesByPath.size < MAX_CGROUPS) namesByPath.set(selector.path, names.add(name))
    }
    this.#namesByPath = namesByPath
  }

  /**
   * What was used since the previous reading, one entry for each service with a cgroup that exists, and one for the
   * daemon, `hostmesh`. The first reading has no CPU time and no pressure. Empty when it is called sooner than 10 s after
   * the previous one: the difference then belongs to the next. Instances of a service are summed up; of their pressures
   * the highest counts. Memory includes the page cache that the kernel charges to the cgroup.
   */
  async read(): Promise<readonly WorkloadUse[]> {
    const nowMs = this.#clock.monotonicMs()
    if (nowMs < this.#dueAtMs - JITTER_MS) return []
    this.#dueAtMs = Math.max(this.#dueAtMs, nowMs - JITTER_MS) + INTERVAL_MS
    const spanMs = this.#readAtMs === undefined ? undefined : nowMs - this.#readAtMs
    this.#readAtMs = nowMs
    const sockets = this.#cgroupRoot === undefined ? undefined : this.#countSockets()
    const uses: WorkloadUse[] = [this.#readDaemon(spanMs, sockets)]
    let inThisTurn = 0
    for (const [path, names] of this.#namesByPath) {
      const known = this.#readCgroup(path, sockets)
      const before = this.#lastByPath.get(path)
      if (known === undefined) this.#lastByPath.delete(path)
      else {
        this.#lastByPath.set(path, known)
        const use = useOf(known, spanMs === undefined ? undefined : (before ?? newborn), spanMs)
        for (const service of names) uses.push({ service, ...use })
      }
      inThisTurn += 1
      if (inThisTurn % CGROUPS_PER_TURN === 0) await nextTurn()
    }
    return sumByService(uses)
  }

  #readCgroup(path: string, sockets: ReadonlyMap<bigint, number> | undefined): Known | undefined {
    if (this.#cgroupRoot === undefined) return undefined
    const folder = join(this.#cgroupRoot, path)
    const number = inodeOf(folder)
    if (number === undefined) return undefined
    return {
      id: String(number),
      reading: {
        cpuUs: numberIn(readText(join(folder, 'cpu.stat')), /^usage_usec (\d+)$/m),
        stalledUs: Object.fromEntries(
          RESOURCES.flatMap((resource): [Resource, number][] => {
            const text = readText(join(folder, `${resource}.pressure`))
            const total = numberIn(text, /^some .*\btotal=(\d+)$/m)
            return total === undefined ? [] : [[resource, total]]
          }),
        ),
        memoryBytes: numberIn(readText(join(folder, 'memory.current')), /^(\d+)$/m),
        tasks: numberIn(readText(join(folder, 'pids.current')), /^(\d+)$/m),
        // None may also mean that they are in the network namespace of a container.
        sockets: sockets?.get(number),
      },
    }
  }

  /** The daemon's cgroup where it is alone in it, else its process: the cgroup has other programs, or a predecessor. */
  #readDaemon(
    spanMs: number | undefined,
    sockets: ReadonlyMap<bigint, number> | undefined,
  ): WorkloadUse {
    const path = /^0::\/(.+)$/m.exec(readText(join(this.#procRoot, 'self/cgroup')) ?? '')?.[1]
    const cgroup = path === undefined ? undefined : this.#readCgroup(path, sockets)
    const isAlone = cgroup !== undefined && path !== undefined && this.#isAlone(path)
    const known = isAlone ? cgroup : this.#readProcess()
    const before = this.#lastOfDaemon
    this.#lastOfDaemon = known
    const isSame = before?.id === known.id
    return { service: REPORTER_SERVICE, ...useOf(known, isSame ? before : undefined, spanMs) }
  }

  #isAlone(path: string): boolean {
    const procs = readText(join(this.#cgroupRoot ?? '', path, 'cgroup.procs'))
    const own = /^(\d+) /.exec(readText(join(this.#procRoot, 'self/stat')) ?? '')?.[1]
    return own !== undefined && procs?.trim() === own
  }

  #readProcess(): Known {
    // The name of the process, in parentheses, may contain anything.
    const stat = readText(join(this.#procRoot, 'self/stat'))
      ?.replace(/^.*\) /s, '')
      .split(' ')
    const ticks = stat?.slice(11, 15).map(Number)
    const status = readText(join(this.#procRoot, 'self/status'))
    const residentKib = numberIn(status, /^VmRSS:\s+(\d+) kB$/m)
    return {
      id: 'process',
      reading: {
        cpuUs:
          ticks?.length === 4
            ? (ticks.reduce((sum, each) => sum + each, 0) * 1_000_000) / TICKS_PER_SECOND
            : undefined,
        stalledUs: {},
        memoryBytes: residentKib === undefined ? undefined : residentKib * 1_024,
        tasks: numberIn(status, /^Threads:\s+(\d+)$/m),
        sockets: undefined,
      },
    }
  }
}

/** The previous reading of a cgroup that was not there: it has used nothing. */
const newborn: Known = {
  id: '',
  reading: {
    cpuUs: 0,
    stalledUs: { cpu: 0, memory: 0, io: 0 },
    memoryBytes: undefined,
    tasks: undefined,
    sockets: undefined,
  },
}

/** @param before undefined: differences are unknown. That of another cgroup counts as none: all is of this span */
function useOf(
  known: Known,
  before: Known | undefined,
  spanMs: number | undefined,
): Omit<WorkloadUse, 'service'> {
  const { cpuUs, stalledUs, memoryBytes, tasks, sockets } = known.reading
  const base = before === undefined || before.id === known.id ? before : newborn
  const cpu = growth(cpuUs, base?.reading.cpuUs)
  const pressure = Object.fromEntries(
    RESOURCES.flatMap((resource): [Resource, number][] => {
      const us = growth(stalledUs[resource], base?.reading.stalledUs[resource])
      if (us === undefined || spanMs === undefined || spanMs <= 0) return []
      return [[resource, Math.min(1, us / 1_000 / spanMs)]]
    }),
  )
  return {
    ...(cpu !== undefined && { cpuMs: cpu / 1_000 }),
    ...(memoryBytes !== undefined && { memoryBytes }),
    ...(tasks !== undefined && { tasks }),
    ...(sockets !== undefined && { sockets }),
    ...(Object.keys(pressure).length > 0 && { pressure }),
  }
}

function growth(now: number | undefined, before: number | undefined): number | undefined {
  if (now === undefined || before === undefined || now < before) return undefined
  return now - before
}

function sumByService(uses: readonly WorkloadUse[]): readonly WorkloadUse[] {
  const byService = new Map<string, WorkloadUse>()
  for (const use of uses) {
    const first = byService.get(use.service)
    byService.set(use.service, first === undefined ? use : sumOf(first, use))
  }
  return [...byService.values()]
}

/** A figure that one of the two lacks is left out of the sum, which would be too small. */
function sumOf(a: WorkloadUse, b: WorkloadUse): WorkloadUse {
  const figures = (['cpuMs', 'memoryBytes', 'tasks', 'sockets'] as const).flatMap(
    (key): [string, number][] => {
      const [first, second] = [a[key], b[key]]
      return first === undefined || second === undefined ? [] : [[key, first + second]]
    },
  )
  const pressure = RESOURCES.flatMap((resource): [string, number][] => {
    const shares = [a, b].flatMap((use) => use.pressure?.[resource] ?? [])
    return shares.length === 0 ? [] : [[resource, Math.max(...shares)]]
  })
  return {
    service: a.service,
    ...Object.fromEntries(figures),
    ...(pressure.length > 0 && { pressure: Object.fromEntries(pressure) }),
  }
}

/** The kernel's number of a cgroup, which is never reused. */
function inodeOf(folder: string): bigint | undefined {
  return statSync(folder, { bigint: true, throwIfNoEntry: false })?.ino
}

/** A file of the kernel, which needs no disk; undefined when it is not there, or its controller is off. */
function readText(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return undefined
  }
}

function numberIn(text: string | undefined, pattern: RegExp): number | undefined {
  const digits = text === undefined ? undefined : pattern.exec(text)?.[1]
  return digits === undefined ? undefined : Number(digits)
}
