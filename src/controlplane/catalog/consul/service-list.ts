/**
 * Follows the list of services in the mesh, those that have a connect proxy or are connect-native, and the virtual
 * addresses that Consul (1.11 and later) assigns to them.
 *
 * Consul has no such list. `/v1/catalog/services` lists everything that is registered, so each name is queried by
 * itself (name-answers.ts). The cost is one small stale read per name every five minutes.
 *
 * For services of the mesh the instances are read too (`/v1/catalog/service/<name>`), at the same pace: whoever dials
 * one of them expects the mesh, whether this host follows the service or not. A service without a proxy stays in the
 * list, marked as gone, until no caller can still have its addresses.
 *
 * A list that is suddenly short is held back for a moment, and one that does not even contain Consul itself is never
 * accepted: that is what a token without rights receives.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { describeError, MeshError } from '../../../lib/errors.ts'
import { fairOrder } from '../../../lib/fair-order.ts'
import { forEachConcurrent } from '../../../lib/for-each-concurrent.ts'
import type { Log } from '../../../lib/log.ts'
import { WakeableLoop } from '../../../lib/wakeable-loop.ts'
import type { InstanceAddress, ListedService } from '../catalog.ts'
import { FORGET_MS } from '../known-addresses.ts'
import type { Follower, FollowWatch } from './blocking-query.ts'
import { Claims } from './claims.ts'
import { decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { DOUBT_MS, isSuddenLoss } from './doubt.ts'
import { decodeInstances, type PlainInstance } from './instances.ts'
import { CONCURRENCY, NameAnswers } from './name-answers.ts'
import type { NodeReader } from './node-reader.ts'
import { type ConsulTransport, requireOk } from './transport.ts'

/** What the watch is built from. */
export interface ServiceListOptions {
  readonly transport: ConsulTransport
  readonly readNode: NodeReader
  /** The addresses that the watch of a followed service accepts; undefined for one that is not followed. */
  readonly followed?: (name: string) => readonly InstanceAddress[] | undefined
  readonly follower: Follower
  readonly log: Log
  readonly clock?: Clock
  readonly random?: Random
  /** The list of an earlier run. */
  readonly last?: readonly ListedService[] | undefined
}

/** A service that is, or was, in the mesh. */
interface Member {
  readonly claims: Claims
  /** When its instances were last read. */
  readAtMs: number
  /** Wall clock of when the last instance that accepts Connect disappeared. */
  goneSinceMs: number | undefined
}

/** Most names that are queried; when there are more, each kind of name gets its share (fair-order.ts). */
const MAX_NAMES = 5_000

/** How often to check for old answers. */
const SWEEP_MS = 15_000

/** Follows the list of services. */
export class ServiceListWatch implements Disposable {
  readonly #onChange: (services: readonly ListedService[]) => void
  readonly #options: ServiceListOptions
  readonly #clock: Clock
  readonly #random: Random
  readonly #closing = new AbortController()
  readonly #loop: WakeableLoop
  readonly #listing: FollowWatch
  readonly #answers: NameAnswers
  readonly #members = new Map<string, Member>()
  /** All names that Consul has; undefined before the first answer. */
  #names: readonly string[] | undefined
  /** How many names were left out. */
  #leftOutCount = 0
  /** The names of the mesh in the last published list. */
  #meshNames: readonly string[]
  #published: string | undefined
  #doubtedAtMs: number | undefined
  #isReading = false
  #problem: string | undefined

  /** `onChange` receives the list sorted by name, every time it changes. */
  constructor(onChange: (services: readonly ListedService[]) => void, options: ServiceListOptions) {
    const { transport, clock = systemClock, random = systemRandom, last = [] } = options
    const { signal } = this.#closing
    this.#onChange = onChange
    this.#options = options
    this.#clock = clock
    this.#random = random
    this.#answers = new NameAnswers({ transport, clock, random, signal })
    this.#meshNames = last.filter(isPresentService).map(({ name }) => name)
    for (const { name, addresses, goneSinceMs } of last)
      this.#members.set(name, this.#newMember(name, addresses, goneSinceMs))
    this.#loop = new WakeableLoop({
      clock,
      signal,
      pass: () => this.#askAll(),
      onError: (thrown) => this.#noteFailure(thrown),
    })
    this.#listing = options.follower.follow(
      '/v1/catalog/services',
      (body) => this.#takeNames(decodeServiceNames(body)),
      { priority: 'urgent', levels: NAME_LEVELS },
    )
  }

  /** What is wrong now, one sentence each. */
  problems(): readonly string[] {
    return this.#problem === undefined ? [] : [this.#problem]
  }

  /** What exceeds the limits of this host, one sentence each. */
  excess(): readonly string[] {
    if (this.#leftOutCount === 0) return []
    return [
      `Consul names ${MAX_NAMES + this.#leftOutCount} services; ${MAX_NAMES} of them are looked at, and what is said to others is not captured`,
    ]
  }

  /** Refused claims, and names with unusable answers, one sentence each. */
  warnings(): readonly string[] {
    const ofMembers = [...this.#members.values()].flatMap(({ claims }) => claims.warnings())
    return [...this.#answers.warnings(), ...ofMembers]
  }

  /** Queries again all names outside the mesh: what the token may read has changed. */
  recheck(): void {
    this.#answers.recheckOthers()
    this.#loop.wake()
  }

  /** Takes over the addresses that the watch of a service accepted, when that watch ends. */
  adopt(name: string, addresses: readonly InstanceAddress[]): void {
    this.#members.get(name)?.claims.adopt(addresses)
  }

  /** The accepted addresses of a service; empty for one that is not in the mesh. */
  addressesOf(name: string): readonly InstanceAddress[] {
    return this.#members.get(name)?.claims.accepted() ?? []
  }

  [Symbol.dispose](): void {
    this.#closing.abort()
    this.#listing[Symbol.dispose]()
    for (const { claims } of this.#members.values()) claims[Symbol.dispose]()
  }

  /** @throws MeshError HM_CONSUL_ANSWER_DOUBTED */
  #takeNames(all: readonly string[]): void {
    const names = all.length > MAX_NAMES ? fairOrder(all).slice(0, MAX_NAMES) : all
    // Consul's own servers are always in the catalog.
    if (names.length === 0)
      throw new MeshError(
        'HM_CONSUL_ANSWER_DOUBTED',
        'Consul names no service, not even itself: the token seems to have lost service:read, so this answer is not accepted',
      )
    const known = new Set(this.#names)
    for (const name of names) if (!known.has(name)) this.#answers.recheckParents(name)
    this.#answers.retain(new Set(names))
    this.#names = names
    this.#leftOutCount = all.length - names.length
    this.#loop.wake()
  }

  /** Returns how long to wait before the next check for old answers. */
  async #askAll(): Promise<number> {
    await this.#answers.refresh(this.#names ?? [])
    this.#problem = undefined
    this.#publish()
    // Not awaited: the list of names does not depend on it.
    void this.#readInstances()
    return this.#doubtedAtMs === undefined ? SWEEP_MS : DOUBT_MS
  }

  #noteFailure(thrown: unknown): number {
    if (this.#problem === undefined)
      this.#options.log.warn('Cannot tell which services are in the mesh')
    this.#problem = describeError(thrown)
    return 1_000 + this.#random() * 4_000
  }

  #publish(): void {
    if (this.#names === undefined || this.#closing.signal.aborted) return
    const meshNames = this.#names.filter((name) => this.#answers.of(name)?.isMesh === true)
    if (this.#isHeldBack(meshNames)) return
    this.#noteMembers(meshNames)
    const list = [...this.#members]
      .map(([name, member]) => this.#listed(name, member))
      .filter(({ addresses, goneSinceMs }) => goneSinceMs === undefined || addresses !== undefined)
      .toSorted((a, b) => (a.name < b.name ? -1 : 1))
    const mark = JSON.stringify(list)
    if (mark === this.#published) return
    this.#published = mark
    this.#meshNames = meshNames
    this.#doubtedAtMs = undefined
    this.#onChange(list)
  }

  /** Whether too many names have disappeared to accept that yet; if so, those are queried again. */
  #isHeldBack(meshNames: readonly string[]): boolean {
    if (!isSuddenLoss(this.#meshNames, meshNames)) {
      this.#doubtedAtMs = undefined
      return false
    }
    const nowMs = this.#clock.monotonicMs()
    this.#doubtedAtMs ??= nowMs
    if (nowMs - this.#doubtedAtMs >= DOUBT_MS) return false
    const present = new Set(meshNames)
    for (const name of this.#meshNames) if (!present.has(name)) this.#answers.forget(name)
    return true
  }

  /** Updates which services are in the mesh, and which no longer are. */
  #noteMembers(meshNames: readonly string[]): void {
    const present = new Set(meshNames)
    for (const name of meshNames) {
      const member = this.#members.get(name)
      if (member === undefined) this.#members.set(name, this.#newMember(name))
      else member.goneSinceMs = undefined
    }
    const nowMs = this.#clock.wallMs()
    for (const [name, member] of this.#members) {
      if (present.has(name)) continue
      member.goneSinceMs ??= nowMs
      if (nowMs - member.goneSinceMs < FORGET_MS) continue
      member.claims[Symbol.dispose]()
      this.#members.delete(name)
    }
  }

  #newMember(name: string, last: readonly InstanceAddress[] = [], goneSinceMs?: number): Member {
    const claims = new Claims(name, {
      clock: this.#clock,
      readNode: (node) => this.#options.readNode(node, undefined),
      last,
      onChange: () => this.#publish(),
    })
    return { claims, readAtMs: Number.NEGATIVE_INFINITY, goneSinceMs }
  }

  #listed(name: string, { claims, goneSinceMs }: Member): ListedService {
    // The watch of the service itself knows more, and earlier.
    claims.adopt(this.#options.followed?.(name) ?? [])
    const addresses = claims.accepted()
    return {
      name,
      virtualIps: this.#answers.of(name)?.virtualIps ?? [],
      ...(addresses.length > 0 && { addresses }),
      ...(goneSinceMs !== undefined && { goneSinceMs }),
    }
  }

  /** Reads the instances of each member about as often as its name is queried. */
  async #readInstances(): Promise<void> {
    if (this.#isReading) return
    this.#isReading = true
    const { signal } = this.#closing
    try {
      const known = new Set(this.#names)
      const due = [...this.#members].filter(
        ([name, { readAtMs }]) =>
          this.#options.followed?.(name) === undefined &&
          (!known.has(name) || (this.#answers.of(name)?.askedAtMs ?? 0) >= readAtMs),
      )
      await forEachConcurrent(due, CONCURRENCY, signal, async ([name, member]) => {
        const readAtMs = this.#clock.monotonicMs()
        try {
          member.claims.take(known.has(name) ? await this.#instancesOf(name) : [])
        } catch (error) {
          this.#answers.noteUnusable(name, error)
        }
        member.readAtMs = readAtMs
      })
    } catch (error) {
      if (!signal.aborted)
        this.#options.log.debug('Cannot read instances', { error: describeError(error) })
    } finally {
      this.#isReading = false
    }
    this.#publish()
  }

  async #instancesOf(name: string): Promise<readonly PlainInstance[]> {
    const { signal } = this.#closing
    const path = `/v1/catalog/service/${encodeURIComponent(name)}?stale`
    const answer = await this.#options.transport.call('GET', path, { signal })
    return decodeInstances(name, requireOk(answer, `reading ${path}`).body).instances
  }
}

function isPresentService({ goneSinceMs }: ListedService): boolean {
  return goneSinceMs === undefined
}
