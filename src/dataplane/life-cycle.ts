/**
 * The periodic work of a worker, and its drain.
 *
 * ```
 *   serving --drain()--> draining --connections gone or deadline--> 'drained'
 * ```
 */
import { sleep } from '../lib/abort.ts'
import { MeshError } from '../lib/errors.ts'
import type { AccessLines } from './access-lines.ts'
import type { Listeners } from './listeners.ts'
import type { MemoryShortage } from './memory-shortage.ts'
import type { FromWorker, ToWorker } from './protocol.ts'
import type { PressureWatch } from './proxy/pressure.ts'
import type { WorkerContext } from './proxy/worker-context.ts'
import type { Sessions } from './sessions.ts'
import type { Accounts } from './tunnel/accounts.ts'
import type { AddressGuard } from './tunnel/address-guard.ts'
import { endOf, expiry } from './tunnel/trust.ts'
import type { Waiting } from './waiting.ts'

/** Interval of the checks of keepalive, idle connections and expired certificates, milliseconds. */
const TICK_MS = 1_000

/** Interval of the check for hosts that no longer answer, milliseconds. */
const WATCH_MS = 50

/** How long closing the tunnels may take when the host drains, milliseconds. */
const CARRIER_DRAIN_MS = 2_000

/**
 * Before a restart: how long the connections accepted last may take to finish, and after that the tunnels to close.
 * Short, because new connections already wait for the next process. Milliseconds.
 */
const LAST_ACCEPTED_MS = 500

/** Time between asking callers to dial anew and refusing new streams: longer than a round trip. Milliseconds. */
const RETIRE_MS = 200

/** Interval at which a draining worker checks whether its connections have ended, milliseconds. */
const DRAIN_LOOK_MS = 20

/** The parts that need periodic work, and that a drain ends. */
export interface LifeCycleParts {
  readonly context: WorkerContext
  readonly sessions: Sessions
  readonly listeners: Listeners
  readonly waiting: Waiting
  readonly accounts: Accounts
  readonly guard: AddressGuard
  readonly pressure: PressureWatch
  readonly memory: MemoryShortage
  readonly accessLines: AccessLines
  /** How often to report the services in use, milliseconds. */
  readonly reportUseMs: number
  readonly post: (message: FromWorker) => void
}

/** The life cycle of one worker, from its start. */
export class LifeCycle {
  private readonly parts: LifeCycleParts
  private ticks = 0
  private drainEndAtMs = Number.POSITIVE_INFINITY

  constructor(parts: LifeCycleParts) {
    this.parts = parts
    setInterval(() => this.tick(), TICK_MS)
    setInterval(() => parts.sessions.dialed.watch(performance.now()), WATCH_MS)
  }

  /** Ends everything in order, then posts `drained`. A further call can only bring the deadline forward. */
  async drain({ deadlineMs, why }: Extract<ToWorker, { readonly kind: 'drain' }>): Promise<void> {
    const { context, sessions, listeners, accessLines, post } = this.parts
    const { connections } = context
    const isAskedAgain = this.drainEndAtMs !== Number.POSITIVE_INFINITY
    this.drainEndAtMs = Math.min(this.drainEndAtMs, performance.now() + deadlineMs)
    if (isAskedAgain) return
    if (why === 'restart') {
      const asked = Date.now()
      while (connections.hasOlderThan(asked) && performance.now() < this.drainEndAtMs)
        await sleep(DRAIN_LOOK_MS)
      this.drainEndAtMs = performance.now() + LAST_ACCEPTED_MS
    }
    listeners.close()
    if (why !== 'stop') {
      sessions.retire()
      await sleep(RETIRE_MS)
    }
    const open = sessions.drain()
    while (connections.size > 0 && performance.now() < this.drainEndAtMs) await sleep(DRAIN_LOOK_MS)
    connections.abortWhere(
      () => true,
      'DR',
      new MeshError('HM_DRAINING', 'The host is shutting down and the drain deadline is over'),
    )
    // The tunnels may still be sending last bytes, resets and go-aways.
    const goneAtMs = performance.now() + (why === 'restart' ? LAST_ACCEPTED_MS : CARRIER_DRAIN_MS)
    do await sleep(DRAIN_LOOK_MS)
    while (open.some(({ isGone }) => !isGone) && performance.now() < goneAtMs)
    accessLines.flush()
    post({ kind: 'drained' })
  }

  private tick(): void {
    const { context, sessions, waiting, accounts, guard, pressure, memory, post } = this.parts
    const { connections, balancer, workerCounters } = context
    waiting.tick()
    this.ticks += 1
    if (this.ticks % Math.max(1, Math.floor(this.parts.reportUseMs / TICK_MS)) === 0) {
      const services = connections.takeCalled()
      if (services.length > 0) post({ kind: 'used', services })
    }
    const nowMs = performance.now()
    const wallMs = Date.now()
    context.arrivals.sweep(nowMs)
    guard.tick(nowMs)
    connections.sweep(nowMs)
    connections.abortUntrusted((certificates) =>
      wallMs >= endOf(certificates) ? expiry(certificates, wallMs) : undefined,
    )
    sessions.tick(nowMs, wallMs)
    balancer.tick()
    workerCounters.set('ejectedEndpoints', balancer.ejectedCount)
    const isShortOf = pressure.take(nowMs)
    memory.tick(accounts.isShort, nowMs)
    post({ kind: 'alive', pressure: isShortOf })
  }
}
