/**
 * The second copy of the guard (held-guard.ts) as a plan requires it: whether this host can hold one, and its content.
 */
import type { Log } from '../../lib/log.ts'
import { backendTraits } from '../../model/capture-backend.ts'
import type { BackendSettings, ChosenBackend, MeshAddresses } from './backend.ts'
import type { RunCommand } from './command.ts'
import { HeldGuard } from './held-guard.ts'
import { guardOf, readCaptured } from './nft-guard.ts'
import { nftObstacle } from './nft-obstacle.ts'
import type { TableOwner } from './table-owner.ts'
import type { ResolvedPlan } from './workloads.ts'

/** The copy of one host. The owner stays the caller's. */
export class GuardCopy {
  readonly #run: RunCommand
  readonly #log: Log
  readonly #owner: TableOwner
  readonly #settings: BackendSettings
  #held: HeldGuard | undefined
  /** Undefined while this host cannot hold a table. */
  #kind: ChosenBackend['kind'] | undefined

  constructor(run: RunCommand, log: Log, owner: TableOwner, settings: BackendSettings) {
    this.#run = run
    this.#log = log
    this.#owner = owner
    this.#settings = settings
  }

  /** Whether the guard survives when another program flushes all tables. */
  get isHeld(): boolean {
    return this.#held?.isHeld ?? false
  }

  /**
   * The backend was chosen. The copy is useful with iptables, too, if there is an nft to hold it: it refuses new
   * connections while rules and guard are gone.
   */
  async choose({ kind }: ChosenBackend, cgroupRoot: string | undefined): Promise<void> {
    const canHold = kind === 'nftables' || (await nftObstacle(this.#run, cgroupRoot)) === undefined
    this.#kind = canHold ? kind : undefined
  }

  /** Makes the copy what plan and addresses require; without {@link choose}, or where it is not possible, there is none. */
  async hold(resolved: ResolvedPlan, addresses: MeshAddresses): Promise<void> {
    const owner = this.#owner
    if (this.#kind === undefined) return this.release()
    const held = (this.#held ??= new HeldGuard(owner, (words) => {
      this.#log.warn('The guard is not held against a flush by others', { words })
    }))
    const by = backendTraits[this.#kind].divertsBy
    const given = { settings: this.#settings, addresses, by }
    const isNew = !held.isHeld || owner.mustBeReplaced
    const open = isNew ? await readCaptured(this.#run, resolved.plan, given) : []
    if (owner.mustBeReplaced) owner.replace()
    held.update((table) => guardOf(resolved, { ...given, table }), open)
  }

  /** Removes the table; {@link hold} creates it again. */
  release(): void {
    this.#held?.[Symbol.dispose]()
    this.#held = undefined
  }
}
