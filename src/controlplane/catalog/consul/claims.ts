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
export interface Claims extends Disposable {
  /** What the catalog lists now. */
  take(instances: readonly PlainInstance[]): void
  /** Sorted. */
  believed(): readonly InstanceAddress[]
  /** Whether every address that is listed has been judged. */
  isSettled(): boolean
  /** Believes what somebody else who judges the same service does. */
  adopt(addresses: readonly InstanceAddress[]): void
  /** Claims that are refused, and those that cannot be judged, one sentence each. */
  warnings(): readonly string[]
}

/** Judges the claims of `service`. */
export function judgeClaims(service: string, options: ClaimsOptions): Claims {
  const { clock, readNode, onChange } = options
  // Of two that are the same the elder comes last and stays.
  let believed = indexAddresses(options.last.toSorted((a, b) => b.since - a.since))
  const refusals = new Map<string, string>()
  let listed: ReadonlyMap<string, PlainInstance> = new Map()
  const asking = new Set<string>()
  /** Why a node could not be asked the last time. */
  const unreadable = new Map<string, string>()
  let timer: NodeJS.Timeout | undefined
  let isClosed = false

  function open(): readonly PlainInstance[] {
    // One that gives way to others has been away for so long that it comes like a new one.
    return [...listed.values()].filter(
      (instance) => (believed.get(keyOfInstance(instance))?.since ?? YIELDING) >= DISPUTED,
    )
  }

  /** One question a node, however many of its addresses are open. */
  async function ask(node: string): Promise<void> {
    asking.add(node)
    let others: readonly NodeService[]
    try {
      others = await readNode(node)
      unreadable.delete(node)
    } catch (error) {
      // Nothing is believed meanwhile, and it is asked again.
      unreadable.set(node, describeError(error))
      return
    } finally {
      asking.delete(node)
    }
    if (isClosed) return
    for (const instance of open()) {
      // An answer without the very instance is older than its claim: whoever was there before may be missing too.
      if (instance.node !== node || !isListed(service, instance, others)) continue
      const key = keyOfInstance(instance)
      const rival = rivalOf(service, instance, others)
      if (rival === undefined) refusals.delete(key)
      else refusals.set(key, refusalOf(service, instance, rival))
      // One that was here and gives way stays until somebody else has the address.
      if (rival?.wasFirst === true) continue
      const address = addressOf(instance)
      believed.set(key, rival === undefined ? address : { ...address, since: DISPUTED })
    }
    onChange()
    schedule()
  }

  function askAll(): void {
    const nodes = new Set(open().map(({ node }) => node))
    for (const node of nodes) if (!asking.has(node)) void ask(node)
  }

  function age(): boolean {
    const aged = ageAddresses(believed, clock.wallMs(), YIELD_MS)
    if (aged === believed) return false
    believed = new Map(aged)
    return true
  }

  function look(): void {
    if (age()) onChange()
    askAll()
    schedule()
  }

  function notAsked(): readonly string[] {
    return [...new Set(open().map(({ node }) => node))].flatMap((node) => {
      const why = unreadable.get(node)
      if (why === undefined) return []
      return `Cannot read what is registered on node ${node}, so that calls to instances of ${service} there are not captured: ${why}`
    })
  }

  function isSettled(): boolean {
    return open().every((instance) => refusals.has(keyOfInstance(instance)))
  }

  function schedule(): void {
    clearTimeout(timer)
    const hasGone = [...believed.values()].some(({ goneSinceMs }) => goneSinceMs !== undefined)
    if (isClosed || (!hasGone && open().length === 0)) return
    timer = setTimeout(look, isSettled() ? AGAIN_MS : RETRY_MS)
    timer.unref()
  }

  return {
    take(instances) {
      listed = new Map(instances.map((instance) => [keyOfInstance(instance), instance]))
      for (const key of refusals.keys()) if (!listed.has(key)) refusals.delete(key)
      believed = noteListed(believed, indexAddresses(instances.map(addressOf)), clock.wallMs())
      age()
      askAll()
      schedule()
    },
    believed: () => sortedAddresses(believed),
    isSettled,
    adopt(addresses) {
      for (const address of addresses) believed.set(keyOf(address), address)
    },
    warnings: () => [...refusals.values(), ...notAsked()],
    [Symbol.dispose]() {
      isClosed = true
      clearTimeout(timer)
    },
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
