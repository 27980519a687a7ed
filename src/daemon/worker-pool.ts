/**
 * The data plane of this host: its workers, what all of them know, and the sockets that they accept from.
 *
 * All workers receive the same snapshots and certificates and accept on the same ports, each on its own sockets, which
 * the main thread keeps. A crashed worker loses only its own connections: new ones wait in its sockets until the
 * replacement accepts them. The pool keeps the current state and sends it to a replacement first.
 */

import type { Socket } from 'node:net'
import { localListeners, tunnelListeners } from '../dataplane/listener-plan.ts'
import type { ToWorker, WorkerSocket } from '../dataplane/protocol.ts'
import type { Pressure } from '../dataplane/proxy/pressure.ts'
import { MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { socketPair } from '../lib/socket-pair.ts'
import { formatAddress, isIpv6 } from '../model/address.ts'
import type { WorkerStatus } from '../model/admin.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import {
  diffSnapshots,
  emptySnapshot,
  type Snapshot,
  type SnapshotDelta,
} from '../model/snapshot.ts'
import type { WorkerTotals } from '../telemetry/totals.ts'
import { ListeningSockets, type PlannedSocket } from './listening-sockets.ts'
import {
  type DrainOrder,
  PooledWorker,
  type PooledWorkerOptions,
  type UseMessage,
} from './pooled-worker.ts'
import { WorkerViews } from './worker-views.ts'

/** Options of a pool. */
export interface WorkerPoolOptions {
  readonly count: number
  /** The settings of every worker, without the individual ones. */
  readonly settings: PooledWorkerOptions['settings']
  readonly totals: WorkerTotals
  readonly log: Log
  /** Maximum bytes of one TCP segment of a tunnel; the kernel's limit if undefined. */
  readonly maxSegment?: number | undefined
  /** The sockets of the host; a set owned by the pool if undefined. */
  readonly sockets?: ListeningSockets
  /** Receives the workers' reports about the use of services; must not throw. */
  readonly onUse?: (message: UseMessage) => void
  /** As in {@link PooledWorkerOptions}; without it the lines are dropped. */
  readonly writeAccessLines?: PooledWorkerOptions['writeAccessLines']
}

/** A worker that sends nothing for this long is stuck: it is ended and replaced. Milliseconds. */
const STUCK_MS = 10_000

/** The data plane of this host, as the control plane sees it. */
export class WorkerPool {
  readonly workers: readonly PooledWorker[]
  /** What the workers report on request. */
  readonly views: WorkerViews
  readonly #options: WorkerPoolOptions
  readonly #sockets: ListeningSockets
  /** Names of the sockets that the workers accept from. */
  readonly #socketNames: string[] = []
  readonly #leaves = new Map<string, Leaf>()
  #bundle: TrustBundle | undefined
  #snapshot: Snapshot = emptySnapshot
  #watchdog: NodeJS.Timeout | undefined
  #watchedAtMs = 0

  constructor(options: WorkerPoolOptions) {
    const { count, settings, totals, log, onUse = () => undefined } = options
    this.#options = options
    this.#sockets = options.sockets ?? new ListeningSockets(log)
    let memories = 0
    const shared = {
      settings,
      totals,
      log,
      nextMemoryId: () => memories++,
      state: () => this.#state(),
      onUse,
      writeAccessLines: options.writeAccessLines ?? (() => Promise.resolve()),
    }
    this.workers = Array.from({ length: count }, (_, id) => new PooledWorker({ ...shared, id }))
    this.views = new WorkerViews(this.workers)
  }

  /** Starts all workers. They receive state and do not accept connections yet. @throws MeshError HM_WORKER_FAILED */
  async prepare(): Promise<void> {
    // Before the first await: a pool that is ended during the start must clear this timer, too.
    this.#watchdog = setInterval(() => this.#endStuckWorkers(), STUCK_MS / 10)
    await Promise.all(this.workers.map((worker) => worker.start()))
  }

  /**
   * Opens the sockets and waits until all workers accept.
   * @throws MeshError HM_LISTEN_FAILED, or another error that keeps a worker from accepting
   */
  async listen(): Promise<void> {
    const planned = plannedSockets(this.#options)
    const shares = this.workers.map(({ id }) =>
      planned.flatMap((listener) => {
        const name = socketName(listener.name, id)
        return this.#share(listener, name, this.#sockets.take({ ...listener, name }))
      }),
    )
    this.#takeSurplus(planned, shares)
    this.#sockets.closeUnused()
    await Promise.all(this.workers.map((worker, index) => worker.listen(shares[index] ?? [])))
    this.#options.log.info('Listening', {
      addresses: planned.map(({ address }) => formatAddress(address)),
    })
  }

  /** Sends a change to all workers. `snapshot` is the full state, kept for workers that start later. */
  publish(delta: SnapshotDelta, snapshot: Snapshot): void {
    this.#snapshot = snapshot
    this.#send({ kind: 'snapshot', delta })
  }

  /** Sends a new leaf to all workers. */
  setLeaf(leaf: Leaf): void {
    this.#leaves.set(leaf.service, leaf)
    this.#send({ kind: 'leaf', leaf })
  }

  /** Sends new roots to all workers. */
  setRoots(bundle: TrustBundle): void {
    this.#bundle = bundle
    this.#send({ kind: 'roots', bundle })
  }

  /**
   * A connection of this thread to a service, carried by a running worker like one of the service `caller`. It ends
   * where a connection of an application would be refused.
   * @throws MeshError HM_WORKER_FAILED when no worker runs, HM_FFI_UNAVAILABLE
   */
  dial(caller: string, destination: string): Socket {
    const worker = this.workers.find(({ isRunning }) => isRunning)
    if (worker === undefined) throw new MeshError('HM_WORKER_FAILED', 'No data-plane worker runs')
    const { near, far } = socketPair()
    worker.dial({ kind: 'dial', fd: far, caller, destination })
    return near
  }

  /** State of each worker, with the number of connections that `connectionsOf` returns for it. */
  statuses(connectionsOf: (worker: number) => number): WorkerStatus[] {
    return this.workers.map((worker) => worker.status(connectionsOf(worker.id)))
  }

  /** The last reports of the running workers about their shortages. */
  pressures(): readonly Pressure[] {
    return this.workers.flatMap(({ pressure }) => (pressure === undefined ? [] : [pressure]))
  }

  /** Accepts no new connections; open ones are reset after `deadlineMs`. Resolves when all are gone. */
  async drain(deadlineMs: number): Promise<void> {
    // Before the workers close their duplicates: otherwise new connections would wait in a socket that nobody serves.
    for (const name of this.#socketNames) this.#sockets.giveUp(name)
    await this.#end({ kind: 'drain', deadlineMs, why: 'stop' })
  }

  /**
   * For a restart: the sockets stay open. New connections are accepted until all open ones have ended or `graceMs` is
   * over; later ones wait for the next process. Resolves when all are gone.
   */
  async drainForRestart(graceMs: number): Promise<void> {
    await this.#end({ kind: 'drain', deadlineMs: graceMs, why: 'restart' })
  }

  /**
   * After another process has taken over the sockets: no new connections; open ones may continue for `deadlineMs`.
   * A second call shortens the deadline. Resolves when all are gone.
   */
  async retire(deadlineMs: number): Promise<void> {
    await this.#end({ kind: 'drain', deadlineMs, why: 'handOver' })
  }

  async #end(order: DrainOrder): Promise<void> {
    clearInterval(this.#watchdog)
    await Promise.all(this.workers.map((worker) => worker.end(order)))
  }

  /**
   * Distributes the sockets of an earlier daemon with more workers among the workers, and keeps them like their own:
   * the kernel resets connections that wait in a closed socket or arrive at that moment.
   */
  #takeSurplus(planned: readonly PlannedSocket[], shares: readonly WorkerSocket[][]): void {
    const listeners = new Map(planned.map((listener) => [listener.name, listener]))
    for (const kept of this.#sockets.inheritedPorts().keys()) {
      const { name, worker } = partsOfSocketName(kept)
      const listener = listeners.get(name)
      const share = shares[worker % shares.length]
      if (listener === undefined || share === undefined) continue
      const fd = this.#sockets.takeInherited({ ...listener, name: kept })
      share.push(...this.#share(listener, kept, fd))
    }
  }

  /** The socket `kept` as a worker gets it; none where the host cannot have it. */
  #share(listener: PlannedSocket, kept: string, fd: number | undefined): readonly WorkerSocket[] {
    if (fd === undefined) return []
    this.#socketNames.push(kept)
    return [{ name: listener.name, fd }]
  }

  /** The messages that bring a new thread up to date. */
  #state(): readonly ToWorker[] {
    return [
      { kind: 'snapshot', delta: diffSnapshots(emptySnapshot, this.#snapshot) },
      ...(this.#bundle === undefined ? [] : [{ kind: 'roots', bundle: this.#bundle } as const]),
      ...[...this.#leaves.values()].map((leaf) => ({ kind: 'leaf', leaf }) as const),
    ]
  }

  #endStuckWorkers(): void {
    const nowMs = performance.now()
    // If this thread itself was blocked, the workers' messages are still unread.
    const wasLate = nowMs - this.#watchedAtMs > STUCK_MS / 2
    this.#watchedAtMs = nowMs
    if (wasLate) return
    for (const worker of this.workers) worker.endIfStuck(STUCK_MS)
  }

  #send(message: ToWorker): void {
    for (const worker of this.workers) worker.send(message)
  }
}

/** One per listener; each worker has its own copy of each, under its own name. */
function plannedSockets({ settings, maxSegment }: WorkerPoolOptions): readonly PlannedSocket[] {
  return [
    ...localListeners(settings).map(({ name, address, kind }) => ({
      name,
      address,
      kind: 'tcp' as const,
      // TPROXY needs it; iptables rules recognize the daemon's own sockets by it.
      transparent: kind === 'capture',
      // Without IPv6 nothing is diverted to these addresses.
      isOptional: kind === 'capture' && isIpv6(address.ip),
    })),
    ...tunnelListeners(settings).map(({ name, address }) => ({
      name,
      address,
      kind: 'tcp' as const,
      transparent: false,
      maxSegment,
      isOptional: false,
    })),
  ]
}

/** The unique name on the host of a worker's socket. */
function socketName(listener: string, worker: number): string {
  return `${listener}/${worker}`
}

/** The inverse of {@link socketName}; `worker` is NaN for a socket that belongs to no worker. */
function partsOfSocketName(name: string): { readonly name: string; readonly worker: number } {
  const end = name.lastIndexOf('/')
  return { name: name.slice(0, Math.max(0, end)), worker: Number(name.slice(end + 1)) }
}
