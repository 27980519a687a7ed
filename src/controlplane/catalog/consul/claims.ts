/**
 * Which instance addresses of one service are believed, and for how long after the catalog has lost them.
 *
 * ```
 *   listed --nobody was there before--> believed --not listed any more--> gone --FORGET_MS--> forgotten
 *      |--another service was--> refused, asked again every AGAIN_MS
 *      \--another may have been--> disputed: believed against nobody, asked again likewise
 * ```
 *
 * Who was at an address first is asked of the node, once for each new address, because the service that has it may
 * be one that this host does not follow. What is believed stays so, whatever is registered there later, also over a
 * restart of this host (`last`). An instance that is gone is one whose host is being restarted, most of the time:
 * its address stays (known-addresses.ts), and gives way to others of the same node only after {@link YIELD_MS}.
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

/** A restart of a host, or a deployment, takes no longer, milliseconds. */
export const YIELD_MS = 3_600_000

/** Refused claims, and addresses that are gone, are looked at so often, milliseconds. */
const AGAIN_MS = 15_000

/** A question that had no answer is asked again so soon, milliseconds. */
const RETRY_MS = 1_500

/** Asks what is registered on a node. */
export type ReadNode = (node: string) => Promise<readonly NodeService[]>

/** What claims are judged with. */
export interface ClaimsOptions {
  readonly readNode: ReadNode
  readonly clock: Clock
  /** Believed by an earlier run. */
  readonly last: readonly InstanceAddress[]
  /** Called when the answer of a node, or time, has changed what is believed. */
  readonly onChange: () => void
}

/** The claims of one service. */
export class Claims implements Disposable {
  readonly #service: string
  readonly #options: ClaimsOptions
  #believed: Map<string, InstanceAddress>
  /** What the catalog lists now. */
  #listed: ReadonlyMap<string, PlainInstance> = new Map()
  readonly #refusals = new Map<string, string>()
  /** Nodes that are being asked. */
  readonly #asking = new Set<string>()
  /** Why a node could not be asked the last time. */
  readonly #unreadable = new Map<string, string>()
  #timer: NodeJS.Timeout | undefined
  #isClosed = false

  constructor(service: string, options: ClaimsOptions) {
    this.#service = service
    this.#options = options
    // Of two that are the same the elder comes last and stays.
    this.#believed = indexAddresses(options.last.toSorted((a, b) => b.since - a.since))
  }

  /** Takes what the catalog lists now. */
  take(instances: readonly PlainInstance[]): void {
    this.#listed = new Map(instances.map((instance) => [keyOfInstance(instance), instance]))
    for (const key of this.#refusals.keys()) if (!this.#listed.has(key)) this.#refusals.delete(key)
    const addresses = indexAddresses(instances.map(addressOf))
    this.#believed = noteListed(this.#believed, addresses, this.#options.clock.wallMs())
    this.#age()
    this.#askAll()
    this.#schedule()
  }

  /** Sorted. */
  believed(): readonly InstanceAddress[] {
    return sortedAddresses(this.#believed)
  }

  /** Whether every address that is listed has been judged. */
  isSettled(): boolean {
    return this.#open().every((instance) => this.#refusals.has(keyOfInstance(instance)))
  }

  /** Believes what somebody else who judges the same service does. */
  adopt(addresses: readonly InstanceAddress[]): void {
    for (const address of addresses) this.#believed.set(keyOf(address), address)
  }

  /** Claims that are refused, and those that cannot be judged, one sentence each. */
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
    // One that gives way to others has been away for so long that it comes like a new one.
    return [...this.#listed.values()].filter(
      (instance) => (this.#believed.get(keyOfInstance(instance))?.since ?? YIELDING) >= DISPUTED,
    )
  }

  #openNodes(): readonly string[] {
    return [...new Set(this.#open().map(({ node }) => node))]
  }

  #age(): boolean {
    const aged = ageAddresses(this.#believed, this.#options.clock.wallMs(), YIELD_MS)
    if (aged === this.#believed) return false
    this.#believed = new Map(aged)
    return true
  }

  #askAll(): void {
    for (const node of this.#openNodes()) if (!this.#asking.has(node)) void this.#ask(node)
  }

  /** One question a node, however many of its addresses are open. */
  async #ask(node: string): Promise<void> {
    this.#asking.add(node)
    let others: readonly NodeService[]
    try {
      others = await this.#options.readNode(node)
      this.#unreadable.delete(node)
    } catch (error) {
      // Nothing is believed meanwhile, and it is asked again.
      this.#unreadable.set(node, describeError(error))
      return
    } finally {
      this.#asking.delete(node)
    }
    if (!this.#isClosed) this.#judge(node, others)
  }

  #judge(node: string, others: readonly NodeService[]): void {
    for (const instance of this.#open()) {
      // An answer without the very instance is older than its claim: whoever was there before may be missing too.
      if (instance.node !== node || !isListed(this.#service, instance, others)) continue
      const key = keyOfInstance(instance)
      const rival = rivalOf(this.#service, instance, others)
      if (rival === undefined) this.#refusals.delete(key)
      else this.#refusals.set(key, refusalOf(this.#service, instance, rival))
      // One that was here and gives way stays until somebody else has the address.
      if (rival?.wasFirst === true) continue
      const address = addressOf(instance)
      this.#believed.set(key, rival === undefined ? address : { ...address, since: DISPUTED })
    }
    this.#options.onChange()
    this.#schedule()
  }

  #schedule(): void {
    clearTimeout(this.#timer)
    const hasGone = [...this.#believed.values()].some(
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
