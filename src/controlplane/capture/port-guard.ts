/**
 * Keeps the daemon's ports for the daemon ({@link renderPortTable}): from its first start on, while it is stopped, and
 * from the next boot on. Another program that takes the table away finds it made again while the daemon runs.
 */
import { describeError } from '../../lib/errors.ts'
import { type Log, silentLog } from '../../lib/log.ts'
import { createCommandRunner, type RunCommand } from './command.ts'
import { HeldGuard } from './held-guard.ts'
import type { WatchKernel } from './kernel-changes.ts'
import { applyNft, checkNft, readCounters, readTable } from './nft.ts'
import { PLAIN_COUNTER, PORT_TABLE, type PortPlan, renderPortTable } from './port-rules.ts'
import type { TableOwner } from './table-owner.ts'
import { pauseAfterLookMs, startUpkeep, type Upkeep } from './upkeep.ts'

/** How often the kernel's counters are read, and the table is looked at although nobody was heard. Milliseconds. */
const COUNT_MS = 5_000
const VERIFY_MS = 10_000

/** Everything that the table may need of nft and of the kernel. */
const PROBE: PortPlan = {
  ports: [
    { kind: 'tcp', address: { ip: '::', port: 1 }, movedTo: 2 },
    { kind: 'udp', address: { ip: '127.0.0.1', port: 1 }, movedTo: 2 },
  ],
  plainInbound: { targets: [{ ip: '127.0.0.1', port: 3 }], refuses: true },
}

/** Why ports cannot be kept on this host; undefined when they can. Changes nothing. */
export async function portGuardObstacle(
  run: RunCommand = createCommandRunner(),
): Promise<string | undefined> {
  try {
    return await checkNft(run, renderPortTable(PROBE, `${PORT_TABLE}_probe`))
  } catch (error) {
    return describeError(error)
  }
}

/** What a guard is made with. */
export interface PortGuardOptions {
  readonly run?: RunCommand
  readonly log?: Log
  readonly watch?: WatchKernel
  /** Owns the rules a second time ({@link HeldGuard}). */
  readonly owner?: TableOwner
}

/** The guard of the ports of a daemon that runs. Disposing it ends the upkeep and leaves the rules. */
export class PortGuard implements Disposable {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #options: PortGuardOptions
  #held: HeldGuard | undefined
  #upkeep: Upkeep | undefined
  #plainInbound = 0
  /** How long the last look took: tens of thousands of rules of others take seconds. */
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
      // What could not be written is tried again, unless the caller gives up.
      this.#upkeep ??= startUpkeep({
        folders: [],
        everyMs: COUNT_MS,
        watch: this.#options.watch,
        // What capture changes is heard, too: a look finds all as planned.
        isOwn: () => false,
        pass: async (sinceVerifyMs, isChanged) => {
          const pauseMs = pauseAfterLookMs(this.#lookMs)
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

  /** Connections that reached a service around the mesh, as old as {@link COUNT_MS}; from 0 again when the table is made anew. */
  get plainInbound(): number {
    return this.#plainInbound
  }

  [Symbol.dispose](): void {
    this.#upkeep?.stop()
    this.#plan = undefined
    this.#held?.[Symbol.dispose]()
  }

  /**
   * Once more, where nobody else can take it away, if anything would be missed for that moment: nobody can bind a TCP port at
   * which this process listens, but where a UDP port has no socket of ours (its loopback twin) somebody can.
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
      // Whoever ended the nft that holds them has taken them away there.
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

/** Guards ports once, without upkeep: for a boot unit. @throws MeshError HM_CAPTURE_* */
export async function applyPortGuard(
  plan: PortPlan,
  run: RunCommand = createCommandRunner(),
): Promise<void> {
  await applyNft(run, replacement(renderPortTable(plan)))
}

/** Gives the ports up. Returns whether they were guarded. */
export async function removePortGuard(run: RunCommand = createCommandRunner()): Promise<boolean> {
  if ((await readTable(run, PORT_TABLE)) === undefined) return false
  await applyNft(run, `delete table inet ${PORT_TABLE}\n`)
  return true
}

/** In one transaction: there is no moment without. */
function replacement(text: string): string {
  return `add table inet ${PORT_TABLE}\ndelete table inet ${PORT_TABLE}\n${text}`
}
