/**
 * Follows one service: its discovery chain, the proxies of every target of the chain, and its own instances, which
 * determine at which addresses callers mean it, with or without a proxy (claims.ts).
 *
 * Each target has its own watch, so that an unreachable datacenter affects only the news about its own instances: the
 * other targets continue, and its last good instances stay. Decided here: an answer in which many instances of a
 * target, or all that are left, suddenly disappear is held back until it has been repeated, because an emptied
 * catalog, a restored server and a token without rights all look like that.
 */
import type { Clock } from '../../../lib/clock.ts'
import { MeshError } from '../../../lib/errors.ts'
import type { Cluster } from '../../../model/cluster.ts'
import type { Endpoint } from '../../../model/endpoint.ts'
import { type CatalogService, type InstanceAddress, YIELDING } from '../catalog.ts'
import type { Follower, FollowWatch } from './blocking-query.ts'
import { Claims } from './claims.ts'
import { type DecodedHealth, decodeHealth } from './decode.ts'
import {
  type ChainCluster,
  type ChainTarget,
  type DecodedChain,
  decodeChain,
  defaultChain,
} from './discovery-chain.ts'
import { DOUBT_MS, isSuddenLoss } from './doubt.ts'
import {
  type DecodedInstances,
  decodeInstances,
  type PlainInstance,
  placeEndpoints,
} from './instances.ts'
import type { NodeReader } from './node-reader.ts'

/**
 * Whether the token may read any service at all: lost rights show as empty lists, not as errors. For another
 * datacenter, or for the agent's own when it is undefined.
 */
export interface TokenProbe {
  /** Queries again when the last answer is old. */
  ask(datacenter: string | undefined): void
  /** Whether there is an answer since `sinceMs` that contained a service. */
  canRead(datacenter: string | undefined, sinceMs: number): boolean
}

/** What the watch is built from. */
export interface ServiceWatchOptions {
  readonly tokenProbe: TokenProbe
  readonly follower: Follower
  readonly readNode: NodeReader
  readonly clock: Clock
  readonly node?: string | undefined
  readonly datacenter?: string | undefined
  /** The answer of an earlier run. */
  readonly last?: CatalogService | undefined
  /** Addresses of its instances that were accepted before this watch. */
  readonly established?: readonly InstanceAddress[] | undefined
}

/** How long an answer of the {@link TokenProbe} is valid, milliseconds. */
export const TOKEN_PROBE_MS = 5_000

/** How long to wait for chain and first target before using what else is known. Milliseconds. */
const PATIENCE_MS = 2_000

/** How long to wait for the service's own instances: a service called by name must not wait for its addresses. */
const INSTANCE_PATIENCE_MS = 500

/** The instances of the service itself in one datacenter. */
interface InstanceWatch {
  readonly watch: FollowWatch
  readonly claims: Claims
  /** The last good answer. */
  listed: DecodedInstances | undefined
}

interface TargetWatch {
  readonly watch: FollowWatch
  /** The last good answer. */
  instances: DecodedHealth | undefined
  /** Sentences about proxies without an instance. */
  warnings: readonly string[]
}

/** Follows one service until it is disposed. */
export class ServiceWatch implements Disposable {
  readonly #name: string
  readonly #onChange: (service: CatalogService) => void
  readonly #options: ServiceWatchOptions
  /** The chain of a service without config entries. */
  readonly #usualChain: DecodedChain
  /** Key: path. */
  readonly #targetWatches = new Map<string, TargetWatch>()
  /** Key: datacenter; '' is the agent's own. */
  readonly #instanceWatches = new Map<string, InstanceWatch>()
  readonly #chainWatch: FollowWatch
  readonly #instanceTimer: NodeJS.Timeout
  /** Undefined until it has been read, or the wait for it is over. */
  #chain: DecodedChain | undefined
  #virtualIps: readonly string[] = []
  #isPatient = true
  #awaitsInstances = true
  #graceTimer: NodeJS.Timeout | undefined
  #published: string | undefined
  #isClosed = false

  /** `onChange` receives every state that differs from the previous one. */
  constructor(
    name: string,
    onChange: (service: CatalogService) => void,
    options: ServiceWatchOptions,
  ) {
    this.#name = name
    this.#onChange = onChange
    this.#options = options
    this.#usualChain = defaultChain(name, options.datacenter)
    // Most chains lead to the service itself: its instances are queried at once.
    this.#followTargets(this.#usualChain)
    this.#chainWatch = options.follower.follow(
      `/v1/discovery-chain/${encodeURIComponent(name)}`,
      (body) =>
        this.#takeChain(
          body === undefined ? this.#usualChain : decodeChain(name, body, options.datacenter),
        ),
      { priority: 'cold' },
    )
    this.#startGracePeriod()
    this.#instanceTimer = setTimeout(() => {
      this.#awaitsInstances = false
      this.#publish()
    }, INSTANCE_PATIENCE_MS)
  }

  problems(): readonly string[] {
    return [
      ...(this.#chain?.problems ?? []),
      ...[...this.#targetWatches.values()].flatMap(({ instances }) => instances?.problems ?? []),
    ]
  }

  /** Refused claims, one sentence each. */
  warnings(): readonly string[] {
    return [
      ...[...this.#instanceWatches.values()].flatMap(({ claims, listed }) => [
        ...(listed?.problems ?? []),
        ...claims.warnings(),
      ]),
      ...[...this.#targetWatches.values()].flatMap(({ warnings }) => warnings),
    ]
  }

  /** The check that keeps an instance from passing, by endpoint key. */
  failing(): ReadonlyMap<string, string> {
    return new Map(
      [...this.#targetWatches.values()].flatMap(({ instances }) => [...(instances?.failing ?? [])]),
    )
  }

  /** Accepted addresses of instances in the agent's own datacenter. */
  addresses(): readonly InstanceAddress[] {
    return this.#instanceWatches.get('')?.claims.accepted() ?? []
  }

  [Symbol.dispose](): void {
    this.#isClosed = true
    clearTimeout(this.#graceTimer)
    clearTimeout(this.#instanceTimer)
    this.#chainWatch[Symbol.dispose]()
    for (const { watch } of this.#targetWatches.values()) watch[Symbol.dispose]()
    for (const opened of this.#instanceWatches.values()) closeInstances(opened)
  }

  #publish(): void {
    const chain = this.#chain
    if (chain === undefined || this.#isClosed) return
    const [main] = chain.clusters
    // Sending all traffic to the failover because it answered a moment earlier would be wrong.
    if (this.#isPatient && this.#instancesOf(main.targets[0]) === undefined) return
    const clusters = chain.clusters.flatMap((cluster) => this.#answered(cluster) ?? [])
    const [first, ...others] = clusters
    if (first?.name !== main.name) return
    // Only accepted addresses are captured: they should be in the first answer.
    if (
      this.#published === undefined &&
      this.#awaitsInstances &&
      !isSettled(this.#instanceWatches.get(''))
    )
      return
    const names = new Set(clusters.map((cluster) => cluster.name))
    const service: CatalogService = {
      name: this.#name,
      protocol: chain.protocol,
      virtualIps: this.#virtualIps,
      routes: chain.routes.flatMap(({ match, clusters: shares }) => {
        const known = shares.filter(({ cluster }) => names.has(cluster))
        return known.length === 0 ? [] : [{ match, clusters: known }]
      }),
      clusters: [first, ...others],
      addresses: [...this.#instanceWatches].flatMap(([datacenter, { claims }]) =>
        claims.accepted().map((address) => asOf(datacenter, address)),
      ),
    }
    const mark = JSON.stringify(service)
    if (mark === this.#published) return
    this.#published = mark
    this.#onChange(service)
  }

  #instancesOf(target: ChainTarget): DecodedHealth | undefined {
    return this.#targetWatches.get(pathOf(target))?.instances
  }

  /** A cluster with the instances of its targets; undefined before any of them has answered. */
  #answered({ targets, ...cluster }: ChainCluster): Cluster | undefined {
    const answers = targets.map((target) => this.#placedEndpoints(target))
    if (answers.every((answer) => answer === undefined)) return undefined
    return { ...cluster, endpoints: combine(targets, answers) }
  }

  /** A target's instances; those of the service itself have the addresses of the instances behind the proxies. */
  #placedEndpoints(target: ChainTarget): readonly Endpoint[] | undefined {
    const watch = this.#targetWatches.get(pathOf(target))
    if (watch?.instances === undefined || target.service !== this.#name)
      return watch?.instances?.endpoints
    const own = this.#instanceWatches.get(target.isRemote ? target.datacenter : '')
    const { endpoints, problems } = placeEndpoints(this.#name, watch.instances.endpoints, [
      // An accepted address that is no longer listed is still valid if its proxy is still there.
      ...(own?.claims.accepted() ?? []).map(asInstance),
      ...(own?.listed?.instances ?? []),
    ])
    watch.warnings = own?.listed === undefined ? [] : problems
    return endpoints
  }

  #takeChain(chain: DecodedChain): void {
    this.#chain = chain
    this.#followTargets(chain)
    if (this.#instancesOf(chain.clusters[0].targets[0]) === undefined) this.#startGracePeriod()
    this.#publish()
  }

  /** Follows the targets of the chain, and no others. */
  #followTargets({ clusters }: DecodedChain): void {
    const paths = new Set(clusters.flatMap((cluster) => cluster.targets.map(pathOf)))
    for (const [path, { watch }] of this.#targetWatches)
      if (!paths.has(path)) {
        watch[Symbol.dispose]()
        this.#targetWatches.delete(path)
      }
    for (const cluster of clusters)
      for (const target of cluster.targets) this.#openTarget(target, cluster.name)
    // Its own instances, here and in datacenters where the chain sends bytes to it: their addresses are captured.
    const datacenters = new Set([
      '',
      ...clusters[0].targets
        .filter(({ service, isRemote }) => service === this.#name && isRemote)
        .map(({ datacenter }) => datacenter),
    ])
    for (const [datacenter, opened] of this.#instanceWatches)
      if (!datacenters.has(datacenter)) {
        closeInstances(opened)
        this.#instanceWatches.delete(datacenter)
      }
    for (const datacenter of datacenters) this.#openInstances(datacenter)
  }

  #openTarget(target: ChainTarget, cluster: string): void {
    const path = pathOf(target)
    if (this.#targetWatches.has(path)) return
    const withoutSuddenLoss = createLossFilter(target, cluster, this.#options)
    const isOwn = path === pathOf(this.#usualChain.clusters[0].targets[0])
    const opened: TargetWatch = {
      instances: undefined,
      warnings: [],
      watch: this.#options.follower.follow(
        path,
        (body) => {
          opened.instances = withoutSuddenLoss(body)
          // Virtual addresses of other services belong to those services.
          if (isOwn) this.#virtualIps = opened.instances.virtualIps
          this.#publish()
        },
        // The agent's summary of services covers its own datacenter only.
        target.isRemote ? {} : { subject: target.service },
      ),
    }
    this.#targetWatches.set(path, opened)
  }

  #openInstances(datacenter: string): void {
    if (this.#instanceWatches.has(datacenter)) return
    const name = this.#name
    const { clock, follower, readNode, last, established } = this.#options
    const isRemote = datacenter !== ''
    const claims = new Claims(name, {
      clock,
      readNode: (node) => readNode(node, isRemote ? datacenter : undefined),
      last: [...addressesOf(last, datacenter), ...(isRemote ? [] : (established ?? []))],
      onChange: () => this.#publish(),
    })
    const opened: InstanceWatch = {
      claims,
      listed: undefined,
      watch: follower.follow(
        `/v1/catalog/service/${encodeURIComponent(name)}${isRemote ? `?dc=${encodeURIComponent(datacenter)}` : ''}`,
        (body) => {
          opened.listed = decodeInstances(name, body, { isRemote })
          claims.take(opened.listed.instances)
          this.#publish()
        },
        { priority: 'cold', ...(!isRemote && { subject: name }) },
      ),
    }
    this.#instanceWatches.set(datacenter, opened)
  }

  #startGracePeriod(): void {
    this.#isPatient = true
    clearTimeout(this.#graceTimer)
    this.#graceTimer = setTimeout(() => {
      this.#isPatient = false
      this.#chain ??= chainWithout(this.#usualChain, this.#options.last)
      this.#publish()
    }, PATIENCE_MS)
  }
}

function closeInstances({ watch, claims }: InstanceWatch): void {
  watch[Symbol.dispose]()
  claims[Symbol.dispose]()
}

function isSettled(watch: InstanceWatch | undefined): boolean {
  return watch?.listed !== undefined && watch.claims.isSettled()
}

function asInstance({ ip, port, node, since }: InstanceAddress): PlainInstance {
  return { node, id: '', address: { ip, port }, since, changed: since, weights: undefined }
}

/** The address as the rest of the mesh uses it: another datacenter has its own indexes, so ours come first. */
function asOf(datacenter: string, address: InstanceAddress): InstanceAddress {
  return datacenter === ''
    ? address
    : { ...address, node: `${datacenter}/${address.node}`, since: YIELDING }
}

/** The reverse, for the answer of an earlier run. */
function addressesOf(
  last: CatalogService | undefined,
  datacenter: string,
): readonly InstanceAddress[] {
  const prefix = datacenter === '' ? '' : `${datacenter}/`
  return (last?.addresses ?? [])
    .filter(({ node }) => (prefix === '' ? !node.includes('/') : node.startsWith(prefix)))
    .map((address) => ({ ...address, node: address.node.slice(prefix.length) }))
}

/** The path that lists a target's proxies. */
function pathOf(target: ChainTarget): string {
  const query = [
    ...(target.isRemote ? [`dc=${encodeURIComponent(target.datacenter)}`] : []),
    ...(target.filter === undefined ? [] : [`filter=${encodeURIComponent(target.filter)}`]),
  ]
  const path = `/v1/health/connect/${encodeURIComponent(target.service)}`
  return query.length === 0 ? path : `${path}?${query.join('&')}`
}

/** The endpoints of all targets; one that occurs in several targets belongs to the first of them. */
function combine(
  targets: readonly ChainTarget[],
  answers: readonly (readonly Endpoint[] | undefined)[],
): readonly Endpoint[] {
  const endpointByKey = new Map<string, Endpoint>()
  for (const [priority, { onlyPassing }] of targets.entries())
    for (const endpoint of answers[priority] ?? []) {
      if (endpointByKey.has(endpoint.key)) continue
      if (onlyPassing && endpoint.health !== 'passing') continue
      endpointByKey.set(endpoint.key, { ...endpoint, priority })
    }
  return [...endpointByKey.values()]
}

/**
 * The chain to use when none has been read in time; undefined to continue waiting: a service that was redirected or
 * split must not be treated as its own only destination.
 */
function chainWithout(
  usual: DecodedChain,
  last: CatalogService | undefined,
): DecodedChain | undefined {
  if (last === undefined) return usual
  const [itself] = usual.clusters
  const [{ name, connectTimeoutMs, endpoints }, ...others] = last.clusters
  const isUsual = name === itself.name && others.length === 0
  if (!isUsual || endpoints.some(({ priority }) => priority > 0)) return undefined
  return { ...usual, protocol: last.protocol, clusters: [{ ...itself, connectTimeoutMs }] }
}

/** The instances of a cluster's target in the answer of an earlier run. */
function remembered(
  target: ChainTarget,
  cluster: string,
  last: CatalogService | undefined,
): readonly Endpoint[] {
  const known = last?.clusters.find(({ name }) => name === cluster)?.endpoints ?? []
  return known.filter(
    ({ service, datacenter }) =>
      service === target.service && (target.datacenter === '' || datacenter === target.datacenter),
  )
}

/** Decodes the answers about one target, and rejects those with a sudden loss. */
function createLossFilter(
  target: ChainTarget,
  cluster: string,
  options: ServiceWatchOptions,
): (body: unknown) => DecodedHealth {
  const { clock, tokenProbe } = options
  let trusted = remembered(target, cluster, options.last)
  const place = {
    node: options.node,
    datacenter: target.isRemote ? target.datacenter : options.datacenter,
    isRemote: target.isRemote,
  }
  const elsewhere = target.isRemote ? target.datacenter : undefined
  let doubtedAtMs: number | undefined
  return (body) => {
    const after = decodeHealth(target.service, body, place)
    // An agent that returns together with others hears of their return last: until then they count as gone.
    const there = after.endpoints.filter(({ key }) => !after.awayKeys.has(key))
    if (isDoubtful(trusted, there)) {
      doubtedAtMs ??= clock.monotonicMs()
      tokenProbe.ask(elsewhere)
      const isOld = clock.monotonicMs() - doubtedAtMs >= DOUBT_MS
      if (!isOld || !tokenProbe.canRead(elsewhere, doubtedAtMs - TOKEN_PROBE_MS))
        throw new MeshError(
          'HM_CONSUL_ANSWER_DOUBTED',
          `Consul suddenly names ${there.length} instances of ${target.service} whose nodes it hears from in place of ` +
            `${trusted.length}: ` +
            (isOld
              ? 'the token seems to have lost service:read, so this answer is not accepted'
              : 'asking again before this answer is accepted'),
        )
    }
    doubtedAtMs = undefined
    trusted = there
    return after
  }
}

/** Whether more instances vanished at once than a deployment removes. */
export function isDoubtful(before: readonly Endpoint[], after: readonly Endpoint[]): boolean {
  return isSuddenLoss(
    before.map((endpoint) => endpoint.key),
    after.map((endpoint) => endpoint.key),
  )
}
