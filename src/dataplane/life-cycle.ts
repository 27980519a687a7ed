/**
 * The clock of a worker and its end.
 *
 * ```
 *   serving --drain()--> draining --connections gone or deadline--> 'drained'
 * ```
 */
import { MeshError } from '../lib/errors.ts'
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

/** Keepalive, idle connections, expired certificates: looked at this often, milliseconds. */
const TICK_MS = 1_000

/** Hosts that do not answer any more: looked for this often, milliseconds. */
const WATCH_MS = 50

/** How long tunnels without connections may take to be closed when the host drains, milliseconds. */
const CARRIER_DRAIN_MS = 2_000

/**
 * Before a restart those who came last have so long to finish, and then the tunnels to be closed: new ones wait already
 * for the next daemon. Milliseconds.
 */
const LAST_ACCEPTED_MS = 500

/** From asking callers to dial anew to refusing what they still send: longer than a round trip. Milliseconds. */
const RETIRE_MS = 200

/** While it drains a worker looks this often whether its connections have ended. Milliseconds. */
const DRAIN_LOOK_MS = 20

/** What is wound up once a second, and taken down in the end. */
export interface LifeCycleParts {
  readonly context: WorkerContext
  readonly sessions: Sessions
  readonly listeners: Listeners
  readonly waiting: Waiting
  readonly accounts: Accounts
  readonly guard: AddressGuard
  readonly pressure: PressureWatch
  readonly memory: MemoryShortage
  /** How often to tell which services are in use, milliseconds. */
  readonly tellUseMs: number
  readonly post: (message: FromWorker) => void
}

/** The life of one worker, from its start on. */
export class LifeCycle {
  private readonly parts: LifeCycleParts
  private ticks = 0
  private drainEndAtMs = Number.POSITIVE_INFINITY

  constructor(parts: LifeCycleParts) {
    this.parts = parts
    setInterval(() => this.tick(), TICK_MS)
    setInterval(() => parts.sessions.dialed.watch(performance.now()), WATCH_MS)
  }

  /** Ends everything in order, and says `drained` then. Asked again, it may bring the deadline forward. */
  async drain({ deadlineMs, why }: Extract<ToWorker, { readonly kind: 'drain' }>): Promise<void> {
    const { context, sessions, listeners, post } = this.parts
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
    // Last bytes, resets and go-aways may still be on their way out of the tunnels.
    const goneAtMs = performance.now() + (why === 'restart' ? LAST_ACCEPTED_MS : CARRIER_DRAIN_MS)
    do await sleep(DRAIN_LOOK_MS)
    while (open.some(({ isGone }) => !isGone) && performance.now() < goneAtMs)
    post({ kind: 'drained' })
  }

  private tick(): void {
    const { context, sessions, waiting, accounts, guard, pressure, memory, post } = this.parts
    const { connections, balancer, workerCounters } = context
    waiting.tick()
    this.ticks += 1
    if (this.ticks % Math.max(1, Math.floor(this.parts.tellUseMs / TICK_MS)) === 0) {
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

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms))
}
