/**
 * A catalog that starts with what it knew before the daemon was restarted.
 *
 * Wraps another catalog. Until that one has answered for a service, the list or the rules, the answer of the earlier
 * run is used; every new answer is passed on and stored. The inner catalog receives the stored answer too, so that it
 * holds back a sudden loss after a restart as it does at any other time.
 */
import { z } from 'zod'
import { type Clock, systemClock } from '../../lib/clock.ts'
import type { StateFile } from '../../lib/state-file.ts'
import { Problem } from '../../model/problem.ts'
import { type Members, policyMembers, routingMembers } from '../../model/schema.ts'
import type {
  Catalog,
  CatalogHealth,
  CatalogPolicy,
  CatalogService,
  ListedService,
} from './catalog.ts'
import { storedAddress } from './known-addresses.ts'

/** Version of the stored data: raised with every change in the shape of a service, policy or list. */
export const CATALOG_STATE_VERSION = 3

/** Longest body of the file, bytes. */
export const MAX_CATALOG_STATE_BYTES = 32 * 1024 * 1024

/** What a remembered catalog is built from. */
export interface RememberedCatalogOptions {
  /** Disposed with the catalog. */
  readonly file: StateFile
  /** Where this host is: stored answers of another datacenter are not used. */
  readonly datacenter: string
  readonly clock?: Clock
  /** How often the age of unchanged answers is written, milliseconds. */
  readonly refreshMs?: number
}

/** A catalog that also reports how many of its answers are only remembered. */
export interface RememberedCatalog extends Catalog {
  /** Answers in use that have not been confirmed since the start. */
  remembered(): RememberedAnswers
}

/** Answers in use that have not been confirmed since the start. */
export interface RememberedAnswers {
  readonly services: Unconfirmed
  readonly policies: Unconfirmed
}

/** How many answers of one kind are from an earlier run. */
export interface Unconfirmed {
  /** The number of known answers to what is followed now. */
  readonly known: number
  /** How many of those have not been confirmed since the start. */
  readonly count: number
  /** Wall clock of the oldest unconfirmed one; undefined when there is none. */
  readonly sinceMs: number | undefined
}

/** A service that has not been followed for this long is forgotten: 7 days. */
const FORGET_AFTER_MS = 7 * 24 * 3_600_000

/** Most services in the file; those followed now come first, then those followed most recently. */
const MAX_SERVICES = 4_000

/** Most characters of services in the file; this leaves room for rules, names and multi-byte characters. */
const SERVICE_BYTES = MAX_CATALOG_STATE_BYTES / 2

const REFRESH_MS = 60_000

/** Ages that differ by less count as equal: the wall clock is slewed all the time. */
const SAVED_AGE_STEP_MS = 1_000

interface Entry {
  readonly service: CatalogService
  /** The service as JSON, made once per change: a write only joins such texts. */
  readonly text: string
  /** Wall clock of when the service was last followed. */
  followedAtMs: number
  /** Wall clock of the last good answer of an earlier run; undefined once this run has had one. */
  readonly confirmedAtMs: number | undefined
}

interface PolicyEntry {
  readonly policy: CatalogPolicy
  /** As in {@link Entry}. */
  readonly confirmedAtMs: number | undefined
}

/** Wraps `inner`, which is disposed with the result. */
export function rememberCatalog(
  inner: Catalog,
  options: RememberedCatalogOptions,
): RememberedCatalog {
  return new RememberingCatalog(inner, options)
}

class RememberingCatalog implements RememberedCatalog {
  readonly description: string
  readonly #inner: Catalog
  readonly #options: RememberedCatalogOptions
  readonly #clock: Clock
  readonly #entryByService = new Map<string, Entry>()
  readonly #watchesByService = new Map<string, number>()
  readonly #policyByDestination = new Map<string, PolicyEntry>()
  readonly #destinations = new Set<string>()
  readonly #timer: NodeJS.Timeout
  #list: readonly ListedService[] | undefined
  #confirmedAtMs: number | undefined
  #savedAtMs = 0
  #hasAnswered = false
  #isFrozen = false
  #leftOut = 0

  constructor(inner: Catalog, options: RememberedCatalogOptions) {
    this.#inner = inner
    this.#options = options
    this.#clock = options.clock ?? systemClock
    this.description = inner.description
    this.#recall()
    this.#timer = setInterval(() => this.#refresh(), options.refreshMs ?? REFRESH_MS)
    this.#timer.unref()
  }

  watchService(name: string, onChange: (service: CatalogService) => void): Disposable {
    const known = this.#entryByService.get(name)
    let isOpen = true
    let isAnswered = false
    this.#countWatch(name, 1)
    const watch = this.#inner.watchService(
      name,
      (service) => {
        isAnswered = true
        this.#takeService(service)
        onChange(service)
      },
      known?.service,
    )
    if (known !== undefined)
      // Never inside this call: the caller does not have its watch yet.
      queueMicrotask(() => {
        if (isOpen && !isAnswered) onChange(known.service)
      })
    return {
      [Symbol.dispose]: () => {
        if (!isOpen) return
        isOpen = false
        this.#countWatch(name, -1)
        const entry = this.#entryByService.get(name)
        if (entry !== undefined) entry.followedAtMs = this.#clock.wallMs()
        watch[Symbol.dispose]()
      },
    }
  }

  watchServiceList(onChange: (services: readonly ListedService[]) => void): Disposable {
    const known = this.#list
    let isDone = false
    const watch = this.#inner.watchServiceList((services) => {
      isDone = true
      this.#list = services
      this.#changed()
      onChange(services)
    }, known)
    if (known !== undefined)
      queueMicrotask(() => {
        if (!isDone) onChange(known)
      })
    return {
      [Symbol.dispose]: () => {
        isDone = true
        watch[Symbol.dispose]()
      },
    }
  }

  watchPolicies(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
  ): Disposable {
    const known = destinations.flatMap((name) => this.#policyByDestination.get(name)?.policy ?? [])
    for (const destination of destinations) this.#destinations.add(destination)
    let isOpen = true
    const watch = this.#inner.watchPolicies(
      destinations,
      (policies) => {
        for (const policy of policies)
          this.#policyByDestination.set(policy.destination, { policy, confirmedAtMs: undefined })
        this.#changed()
        onChange(policies)
      },
      known,
    )
    if (known.length > 0)
      queueMicrotask(() => {
        // Later answers are newer; of the rest nothing better is known.
        const still = known.filter(
          (policy) => this.#policyByDestination.get(policy.destination)?.policy === policy,
        )
        if (isOpen && still.length > 0) onChange(still)
      })
    return {
      [Symbol.dispose]: () => {
        isOpen = false
        watch[Symbol.dispose]()
      },
    }
  }

  register(...args: Parameters<Catalog['register']>): Promise<void> {
    return this.#inner.register(...args)
  }

  leave(): void {
    this.#inner.leave?.()
  }

  deregister(): Promise<void> {
    // From now on the catalog shows this host's own services as those of a stopped host: a restart must not begin
    // with that.
    this.#freeze()
    return this.#inner.deregister()
  }

  failingChecks(): ReadonlyMap<string, string> {
    return this.#inner.failingChecks?.() ?? new Map()
  }

  health(): CatalogHealth {
    const health = this.#inner.health()
    const problems = [...health.problems]
    if (this.#leftOut > 0)
      problems.push(
        new Problem(
          'HM_CATALOG_TOO_LARGE',
          `${this.#leftOut} services are too large to be kept for a restart`,
        ),
      )
    if (this.#hasAnswered || this.#confirmedAtMs === undefined) return { ...health, problems }
    const ageMs = Math.max(0, this.#clock.wallMs() - this.#confirmedAtMs)
    return { lastGoodAtMs: this.#clock.monotonicMs() - ageMs, problems }
  }

  remembered(): RememberedAnswers {
    return {
      services: counted(
        [...this.#entryByService.values()].filter(({ service }) =>
          this.#watchesByService.has(service.name),
        ),
      ),
      policies: counted(
        [...this.#policyByDestination.values()].filter(({ policy }) =>
          this.#destinations.has(policy.destination),
        ),
      ),
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    this.#freeze()
    await this.#inner[Symbol.asyncDispose]()
    await this.#options.file[Symbol.asyncDispose]()
  }

  #countWatch(name: string, change: number): void {
    const watches = (this.#watchesByService.get(name) ?? 0) + change
    if (watches > 0) this.#watchesByService.set(name, watches)
    else this.#watchesByService.delete(name)
  }

  #takeService(service: CatalogService): void {
    this.#entryByService.set(service.name, {
      service,
      text: JSON.stringify(service),
      followedAtMs: this.#clock.wallMs(),
      confirmedAtMs: undefined,
    })
    this.#changed()
  }

  #changed(): void {
    this.#hasAnswered = true
    this.#save()
  }

  /** The age is part of the stored data, so it is written even if nothing else has changed. */
  #refresh(): void {
    const goodAtMs = this.#goodAtMs()
    // A difference in either direction: a clock that was set back must not keep the age from being written.
    if (goodAtMs !== undefined && Math.abs(goodAtMs - this.#savedAtMs) >= SAVED_AGE_STEP_MS)
      this.#save()
  }

  /** Wall clock of the last good answer, of this run or of the earlier one. */
  #goodAtMs(): number | undefined {
    const { lastGoodAtMs } = this.#inner.health()
    if (!this.#hasAnswered || lastGoodAtMs === undefined) return this.#confirmedAtMs
    return this.#clock.wallMs() - (this.#clock.monotonicMs() - lastGoodAtMs)
  }

  #save(): void {
    // Without an answer the file already holds all that is known.
    if (this.#isFrozen || !this.#hasAnswered) return
    this.#savedAtMs = this.#goodAtMs() ?? 0
    this.#options.file.save(() => this.#render())
  }

  /** Stores what is known now, and nothing later. */
  #freeze(): void {
    if (this.#isFrozen) return
    this.#isFrozen = true
    if (!this.#hasAnswered) return
    const text = this.#render()
    this.#options.file.save(() => text)
  }

  #render(): string {
    const nowMs = this.#clock.wallMs()
    const goodAtMs = Math.round(this.#goodAtMs() ?? nowMs)
    const kept: string[] = []
    let leftBytes = SERVICE_BYTES
    this.#leftOut = 0
    for (const { service, text, ...entry } of this.#byUse()) {
      const isFollowed = this.#watchesByService.has(service.name)
      if (!isFollowed && nowMs - entry.followedAtMs > FORGET_AFTER_MS) {
        this.#entryByService.delete(service.name)
        continue
      }
      leftBytes -= text.length
      if (leftBytes < 0 || kept.length >= MAX_SERVICES) {
        if (isFollowed) this.#leftOut += 1
        continue
      }
      const confirmedAtMs = entry.confirmedAtMs ?? goodAtMs
      const followedAtMs = isFollowed ? nowMs : Math.round(entry.followedAtMs)
      kept.push(`{${members({ confirmedAtMs, followedAtMs })},"service":${text}}`)
    }
    const head = members({
      source: this.#source(),
      confirmedAtMs: goodAtMs,
      list: this.#list ?? null,
      policies: [...this.#policyByDestination.values()]
        // Services that no longer run here need no rules here.
        .filter(({ policy }) => this.#destinations.has(policy.destination))
        .map(({ policy, confirmedAtMs = goodAtMs }) => ({ confirmedAtMs, policy })),
    })
    return `{${head},"services":[${kept.join(',')}]}`
  }

  /** Followed services first, then those followed most recently. */
  #byUse(): readonly Entry[] {
    const rank = ({ service }: Entry): number => Number(this.#watchesByService.has(service.name))
    return [...this.#entryByService.values()].toSorted(
      (a, b) => rank(b) - rank(a) || b.followedAtMs - a.followedAtMs,
    )
  }

  /** Identifies the source: another Consul may have other services with the same names. */
  #source(): string {
    return `${this.#options.datacenter} ${this.#inner.description}`
  }

  #recall(): void {
    const { file } = this.#options
    if (file.stored === undefined) return
    const parsed = storedCatalog.safeParse(file.stored.body)
    if (!parsed.success) {
      file.reject('its body does not have the shape of a catalog')
      return
    }
    const { source, confirmedAtMs, list, policies, services } = parsed.data
    if (source !== this.#source()) return
    this.#confirmedAtMs = confirmedAtMs
    this.#list = list ?? undefined
    for (const entry of policies) this.#policyByDestination.set(entry.policy.destination, entry)
    for (const entry of services)
      this.#entryByService.set(entry.service.name, {
        ...entry,
        text: JSON.stringify(entry.service),
      })
  }
}

function counted(entries: readonly Pick<Entry, 'confirmedAtMs'>[]): Unconfirmed {
  const times = entries.flatMap(({ confirmedAtMs }) => confirmedAtMs ?? [])
  return {
    known: entries.length,
    count: times.length,
    sinceMs: times.length === 0 ? undefined : Math.min(...times),
  }
}

/** The members of an object as JSON, without its braces. */
function members(object: Readonly<Record<string, unknown>>): string {
  return JSON.stringify(object).slice(1, -1)
}

const listedService: z.ZodType<ListedService> = z.object({
  name: z.string(),
  virtualIps: z.array(z.string()),
  addresses: z.exactOptional(z.array(storedAddress)),
  goneSinceMs: z.exactOptional(z.number()),
} satisfies Members<ListedService>)

const catalogService: z.ZodType<CatalogService> = z.object({
  name: z.string(),
  protocol: z.string(),
  virtualIps: z.array(z.string()),
  ...routingMembers,
  addresses: z.array(storedAddress),
} satisfies Members<CatalogService>)

const catalogPolicy: z.ZodType<CatalogPolicy> = z.object(
  policyMembers satisfies Members<CatalogPolicy>,
)

const storedCatalog = z.object({
  source: z.string(),
  confirmedAtMs: z.number(),
  list: z.array(listedService).nullable(),
  policies: z.array(
    z.object({
      confirmedAtMs: z.number(),
      policy: catalogPolicy,
    }),
  ),
  services: z.array(
    z.object({
      confirmedAtMs: z.number(),
      followedAtMs: z.number(),
      service: catalogService,
    }),
  ),
})
