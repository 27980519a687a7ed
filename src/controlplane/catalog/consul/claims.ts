/**
 * Decides which instance addresses of one service are accepted, and for how long after the catalog stops listing them.
 *
 * ```
 *   listed --no other service was there before--> accepted --no longer listed--> gone --FORGET_MS--> forgotten
 *      |--another service was--> refused, asked again every AGAIN_MS
 *      \--another may have been--> disputed: another service keeps the address; asked again likewise
 * ```
 *
 * Which service was at an address first is read from the node, once for each new address, because the service that
 * has it may be one that this host does not follow. An accepted address stays accepted, whatever is registered there
 * later, also after a restart of this host (`last`). When an instance disappears, its host is usually restarting: its
 * address stays (known-addresses.ts), and yields to other services of the same node only after {@link YIELD_MS}.
 */
import type { Clock } from '../../../lib/clock.ts'
import { describeError } from '../../../lib/errors.ts'
import { formatAddress } from '../../../model/address.ts'
import { DISPUTED, type InstanceAddress, YIELDING } from '../catalog.ts'
import {
  ageAddresses,
  indexAddresses,
  keyOf,
  noteListed,
  sortedAddresses,
} from '../known-addresses.ts'
import { isListed, type NodeService, type PlainInstance, type Rival, rivalOf } from './instances.ts'

/** A restart of a host, or a deployment, takes less than this, milliseconds. */
export const YIELD_MS = 3_600_000

/** How often refused claims and gone addresses are checked again, milliseconds. */
const AGAIN_MS = 15_000

/** Delay before a failed read is repeated, milliseconds. */
const RETRY_MS = 1_500

/** Reads what is registered on a node. */
export type ReadNode = (node: string) => Promise<readonly NodeService[]>

/** What is needed to judge claims. */
export interface ClaimsOptions {
  readonly readNode: ReadNode
  readonly clock: Clock
  /** Accepted by an earlier run. */
  readonly last: readonly InstanceAddress[]
  /** Called when the answer of a node, or time, has changed the accepted addresses. */
  readonly onChange: () => void
}

/** The claims of one service. */
export class Claims implements Disposable {
  readonly #service: string
  readonly #options: ClaimsOptions
  #accepted: Map<string, InstanceAddress>
  /** What the catalog lists now. */
  #listed: ReadonlyMap<string, PlainInstance> = new Map()
  readonly #refusals = new Map<string, string>()
  /** Nodes that are being read. */
  readonly #asking = new Set<string>()
  /** Why the last read of a node failed. */
  readonly #unreadable = new Map<string, string>()
  #timer: NodeJS.Timeout | undefined
  #isClosed = false

  constructor(service: string, options: ClaimsOptions) {
    this.#service = service
    this.#options = options
    // Of two equal keys the older claim comes last and stays.
    this.#accepted = indexAddresses(options.last.toSorted((a, b) => b.since - a.since))
  }

  /** Takes what the catalog lists now. */
  take(instances: readonly PlainInstance[]): void {
    this.#listed = new Map(instances.map((instance) => [keyOfInstance(instance), instance]))
    for (const key of this.#refusals.keys()) if (!this.#listed.has(key)) this.#refusals.delete(key)
    const addresses = indexAddresses(instances.map(addressOf))
    this.#accepted = noteListed(this.#accepted, addresses, this.#options.clock.wallMs())
    this.#age()
    this.#askAll()
    this.#schedule()
  }

  /** Sorted. */
  accepted(): readonly InstanceAddress[] {
    return sortedAddresses(this.#accepted)
  }

  /** Whether every address that is listed has been judged. */
  isSettled(): boolean {
    return this.#open().every((instance) => this.#refusals.has(keyOfInstance(instance)))
  }

  /** Accepts addresses that another judge of the same service has accepted. */
  adopt(addresses: readonly InstanceAddress[]): void {
    for (const address of addresses) this.#accepted.set(keyOf(address), address)
  }

  /** Refused claims, and claims that cannot be judged, one sentence each. */
  warnings(): readonly string[] {
    const notAsked = this.#openNodes().flatMap((node) => {
      const why = this.#unreadable.get(node)
      if (why === undefined) return []
      return `Cannot read what is registered on node ${node}, so that calls to instances of ${this.#service} there are not captured: ${why}`
    })
    return [...this.#refusals.values(), ...notAsked]
  }

  [Symbol.dispose](): void {
    this.#isClosed = true
    clearTimeout(this.#timer)
  }

  #open(): readonly PlainInstance[] {
    // An address that yields was missing for so long that it is judged like a new one.
    return [...this.#listed.values()].filter(
      (instance) => (this.#accepted.get(keyOfInstance(instance))?.since ?? YIELDING) >= DISPUTED,
    )
  }

  #openNodes(): readonly string[] {
    return [...new Set(this.#open().map(({ node }) => node))]
  }

  #age(): boolean {
    const aged = ageAddresses(this.#accepted, this.#options.clock.wallMs(), YIELD_MS)
    if (aged === this.#accepted) return false
    this.#accepted = new Map(aged)
    return true
  }

  #askAll(): void {
    for (const node of this.#openNodes()) if (!this.#asking.has(node)) void this.#ask(node)
  }

  /** One read per node, however many of its addresses are open. */
  async #ask(node: string): Promise<void> {
    this.#asking.add(node)
    let others: readonly NodeService[]
    try {
      others = await this.#options.readNode(node)
      this.#unreadable.delete(node)
    } catch (error) {
      // Nothing new is accepted meanwhile, and the read is repeated.
      this.#unreadable.set(node, describeError(error))
      return
    } finally {
      this.#asking.delete(node)
    }
    if (!this.#isClosed) this.#judge(node, others)
  }

  #judge(node: string, others: readonly NodeService[]): void {
    for (const instance of this.#open()) {
      // An answer without this instance is older than its claim, so an earlier service may be missing from it too.
      if (instance.node !== node || !isListed(this.#service, instance, others)) continue
      const key = keyOfInstance(instance)
      const rival = rivalOf(this.#service, instance, others)
      if (rival === undefined) this.#refusals.delete(key)
      else this.#refusals.set(key, refusalOf(this.#service, instance, rival))
      // An address that was here and yields stays until another service has it.
      if (rival?.wasFirst === true) continue
      const address = addressOf(instance)
      this.#accepted.set(key, rival === undefined ? address : { ...address, since: DISPUTED })
    }
    this.#options.onChange()
    this.#schedule()
  }

  #schedule(): void {
    clearTimeout(this.#timer)
    const hasGone = [...this.#accepted.values()].some(
      ({ goneSinceMs }) => goneSinceMs !== undefined,
    )
    if (this.#isClosed || (!hasGone && this.#open().length === 0)) return
    this.#timer = setTimeout(() => this.#look(), this.isSettled() ? AGAIN_MS : RETRY_MS)
    this.#timer.unref()
  }

  #look(): void {
    if (this.#age()) this.#options.onChange()
    this.#askAll()
    this.#schedule()
  }
}

function refusalOf(service: string, { node, id, address }: PlainInstance, rival: Rival): string {
  const claim = `Instance ${node}/${id} of ${service} claims ${formatAddress(address)}, where service ${rival.service}`
  return rival.wasFirst
    ? `${claim} was registered before: calls there are not calls of ${service}`
    : `${claim} is registered, too, and may have been before: calls there are refused`
}

function addressOf({ node, address, since }: PlainInstance): InstanceAddress {
  return { ip: address.ip, port: address.port, node, since }
}

function keyOfInstance(instance: PlainInstance): string {
  return keyOf(addressOf(instance))
}
