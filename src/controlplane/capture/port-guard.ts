/**
 * Keeps the daemon's ports for the daemon ({@link renderPortTable}): from its first start on, while it is stopped, and
 * from the next boot on. Another program that takes the table away finds it made again while the daemon runs.
 */
import { describeError } from '../../lib/errors.ts'
import { type Log, silentLog } from '../../lib/log.ts'
import { createCommandRunner, type RunCommand } from './command.ts'
import { HeldGuard, type StartNft } from './held-guard.ts'
import type { WatchKernel } from './kernel-changes.ts'
import { applyNft, checkNft, readTable } from './nft.ts'
import { type GuardedPort, PORT_TABLE, renderPortTable } from './port-rules.ts'

/** What is heard comes in bursts: one look for all of them. Milliseconds. */
const LOOK_AFTER_MS = 100

/** Everything that the table may need of nft and of the kernel. */
const PROBE: readonly GuardedPort[] = [
  { kind: 'tcp', address: { ip: '::', port: 1 }, movedTo: 2 },
  { kind: 'udp', address: { ip: '127.0.0.1', port: 1 }, movedTo: 2 },
]

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
  /** Starts the nft that holds the rules a second time ({@link HeldGuard}). */
  readonly startNft?: StartNft
}

/** The guard of the ports of a daemon that runs. Disposing it ends the upkeep and leaves the rules. */
export class PortGuard implements Disposable {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #options: PortGuardOptions
  #held: HeldGuard | undefined
  #kernel: Disposable | undefined
  #look: NodeJS.Timeout | undefined
  #text: string | undefined
  /** What the kernel printed of the table when it was as planned. */
  #listing: string | undefined

  constructor(options: PortGuardOptions) {
    this.#options = options
    this.#run = options.run ?? createCommandRunner()
    this.#log = (options.log ?? silentLog).child('ports')
  }

  /** Guards these ports and no others from now on. @throws MeshError HM_CAPTURE_* */
  async apply(ports: readonly GuardedPort[]): Promise<void> {
    this.#text = renderPortTable(ports)
    await this.#write()
    this.#hold(ports)
    this.#kernel ??= this.#options.watch?.(() => {
      this.#look ??= setTimeout(() => void this.#repair(), LOOK_AFTER_MS).unref()
    })
  }

  [Symbol.dispose](): void {
    this.#kernel?.[Symbol.dispose]()
    clearTimeout(this.#look)
    this.#text = undefined
    this.#held?.[Symbol.dispose]()
  }

  /** Once more, where nobody else can take it away. */
  #hold(ports: readonly GuardedPort[]): void {
    const { startNft } = this.#options
    if (startNft === undefined) return
    const complain = (words: string): void =>
      this.#log.warn('The rules of our ports are not held against a flush by others', { words })
    this.#held ??= new HeldGuard(startNft, complain, `${PORT_TABLE}_${process.pid}`)
    this.#held.update({ text: renderPortTable(ports, this.#held.table), sets: [] })
  }

  async #write(): Promise<void> {
    await applyNft(this.#run, replacement(this.#text ?? ''))
    this.#listing = await readTable(this.#run, PORT_TABLE)
  }

  async #repair(): Promise<void> {
    this.#look = undefined
    try {
      if ((await readTable(this.#run, PORT_TABLE)) === this.#listing) return
      if (this.#text === undefined) return
      await this.#write()
      this.#log.warn('The rules of our ports were changed by another program; applied again')
    } catch (error) {
      this.#log.error('Cannot keep the rules of our ports', { error: describeError(error) })
    }
  }
}

/** Guards ports once, without upkeep: for a boot unit. @throws MeshError HM_CAPTURE_* */
export async function applyPortGuard(
  ports: readonly GuardedPort[],
  run: RunCommand = createCommandRunner(),
): Promise<void> {
  await applyNft(run, replacement(renderPortTable(ports)))
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
