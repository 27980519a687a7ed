/**
 * Reserves the daemon's ports for the daemon ({@link renderPortTable}): from its first start on, also while it is
 * stopped and from the next boot on. While the daemon runs, it restores the table when another program removes it.
 */
import { describeError } from '../../lib/errors.ts'
import { type Log, silentLog } from '../../lib/log.ts'
import { createCommandRunner, type RunCommand } from './command.ts'
import { HeldGuard } from './held-guard.ts'
import type { WatchKernel } from './kernel-changes.ts'
import { type Maintenance, pauseAfterCheckMs, startMaintenance } from './maintenance.ts'
import { applyNft, checkNft, readCounters, readTable } from './nft.ts'
import { PLAIN_COUNTER, PORT_TABLE, type PortPlan, renderPortTable } from './port-rules.ts'
import type { TableOwner } from './table-owner.ts'

/** Intervals of reading the kernel's counters, and of verifying the table without a report. Milliseconds. */
const COUNT_MS = 5_000
const VERIFY_MS = 10_000

/** Every feature of nft and of the kernel that the table may need. */
const PROBE: PortPlan = {
  ports: [
    { kind: 'tcp', address: { ip: '::', port: 1 }, movedTo: 2 },
    { kind: 'udp', address: { ip: '127.0.0.1', port: 1 }, movedTo: 2 },
  ],
  plainInbound: { targets: [{ ip: '127.0.0.1', port: 3 }], refuses: true },
}

/** Why ports cannot be guarded on this host; undefined when they can. Changes nothing. */
export async function portGuardObstacle(
  run: RunCommand = createCommandRunner(),
): Promise<string | undefined> {
  try {
    return await checkNft(run, renderPortTable(PROBE, `${PORT_TABLE}_probe`))
  } catch (error) {
    return describeError(error)
  }
}

/** Options of a guard. */
export interface PortGuardOptions {
  readonly run?: RunCommand
  readonly log?: Log
  readonly watch?: WatchKernel
  /** Owns a second copy of the rules ({@link HeldGuard}). */
  readonly owner?: TableOwner
}

/** The guard of the ports of a running daemon. Disposing it ends the maintenance loop and leaves the rules in place. */
export class PortGuard implements Disposable {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #options: PortGuardOptions
  #held: HeldGuard | undefined
  #maintenance: Maintenance | undefined
  #plainInbound = 0
  /** Duration of the last check: with tens of thousands of foreign rules it takes seconds. */
  #lookMs = 0
  #plan: PortPlan | undefined
  /** What the kernel printed of the table when it was as planned. */
  #listing: string | undefined

  constructor(options: PortGuardOptions) {
    this.#options = options
    this.#run = options.run ?? createCommandRunner()
    this.#log = (options.log ?? silentLog).child('ports')
  }

  /** Guards these ports and no others from now on. @throws MeshError HM_CAPTURE_* */
  async apply(plan: PortPlan): Promise<void> {
    this.#plan = plan
    try {
      await this.#write(plan)
      this.#hold()
    } finally {
      // A failed write is tried again, unless the caller gives up.
      this.#maintenance ??= startMaintenance({
        folders: [],
        everyMs: COUNT_MS,
        watch: this.#options.watch,
        // Changes made by capture are reported, too: a check then finds everything as planned.
        isOwn: () => false,
        pass: async (sinceVerifyMs, isChanged) => {
          const pauseMs = pauseAfterCheckMs(this.#lookMs)
          const isDue = isChanged || sinceVerifyMs >= Math.max(VERIFY_MS, pauseMs)
          if (!isDue && sinceVerifyMs < pauseMs) return false
          const beganAt = performance.now()
          if (isDue) await this.#repair()
          await this.#count()
          this.#lookMs = performance.now() - beganAt
          return isDue
        },
      })
    }
  }

  /** Connections that bypassed the mesh, read at most {@link COUNT_MS} ago; restarts at 0 with a new table. */
  get plainInbound(): number {
    return this.#plainInbound
  }

  [Symbol.dispose](): void {
    this.#maintenance?.stop()
    this.#plan = undefined
    this.#held?.[Symbol.dispose]()
  }

  /**
   * Holds a second copy that no other program can flush, if a gap would matter. No other process can bind a TCP port at
   * which this process listens; but a UDP port without a socket of ours (its loopback twin) can be bound.
   */
  #hold(): void {
    const { owner } = this.#options
    const plan = this.#plan
    if (owner === undefined || plan === undefined) return
    const isMissed =
      plan.plainInbound.refuses ||
      plan.ports.some(({ kind, movedTo }) => kind === 'udp' || movedTo !== undefined)
    if (!isMissed) {
      this.#held?.[Symbol.dispose]()
      return
    }
    const complain = (words: string): void =>
      this.#log.warn('The rules of our ports are not held against a flush by others', { words })
    this.#held ??= new HeldGuard(owner, complain, `${PORT_TABLE}_${process.pid}`)
    this.#held.update((table) => ({ text: renderPortTable(plan, table), sets: [] }))
  }

  async #count(): Promise<void> {
    try {
      const counters = await readCounters(this.#run)
      this.#plainInbound = counters(PORT_TABLE).get(PLAIN_COUNTER) ?? 0
    } catch (error) {
      this.#log.debug('Cannot read the counters of our ports', { error: describeError(error) })
    }
  }

  async #write(plan: PortPlan): Promise<void> {
    await applyNft(this.#run, replacement(renderPortTable(plan)))
    this.#listing = await readTable(this.#run, PORT_TABLE)
  }

  async #repair(): Promise<void> {
    try {
      // The nft that holds the second copy may have been killed, and the copy with it.
      this.#hold()
      if (this.#plan === undefined) return
      const isWritten = this.#listing !== undefined
      if (isWritten && (await readTable(this.#run, PORT_TABLE)) === this.#listing) return
      await this.#write(this.#plan)
      if (isWritten)
        this.#log.warn('The rules of our ports were changed by another program; applied again')
    } catch (error) {
      this.#log.error('Cannot keep the rules of our ports', { error: describeError(error) })
    }
  }
}

/** Guards ports once, without maintenance: for a boot unit. @throws MeshError HM_CAPTURE_* */
export async function applyPortGuard(
  plan: PortPlan,
  run: RunCommand = createCommandRunner(),
): Promise<void> {
  await applyNft(run, replacement(renderPortTable(plan)))
}

/** Removes the guard of the ports. Returns whether they were guarded. */
export async function removePortGuard(run: RunCommand = createCommandRunner()): Promise<boolean> {
  if ((await readTable(run, PORT_TABLE)) === undefined) return false
  await applyNft(run, `delete table inet ${PORT_TABLE}\n`)
  return true
}

/** Replaces the table in one transaction: the ports are guarded at every moment. */
function replacement(text: string): string {
  return `add table inet ${PORT_TABLE}\ndelete table inet ${PORT_TABLE}\n${text}`
}
