/**
 * The catalog of a local Consul agent: instances, intentions, registration.
 *
 * Combines the parts of this folder; each part keeps its own last good answer.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { isErrorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { SocketAddress } from '../../../model/address.ts'
import { Problem, type ProblemCode } from '../../../model/problem.ts'
import type { LocalService } from '../../../model/service.ts'
import type {
  Catalog,
  CatalogHealth,
  CatalogPolicy,
  CatalogService,
  ListedService,
} from '../catalog.ts'
import { Follower, type FollowHealth } from './blocking-query.ts'
import { SUMMARY_PATH, startChangeHints } from './change-hints.ts'
import { decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { type AgentSelf, decodeAgentSelf } from './decode-agent.ts'
import { IntentionWatch, subjectOf } from './intentions.ts'
import { createNodeReader, type NodeReader } from './node-reader.ts'
import { Registrar } from './registration.ts'
import { AGENT_RULE } from './rights.ts'
import { ServerCheck } from './server-check.ts'
import { ServiceListWatch } from './service-list.ts'
import { ServiceWatch, TOKEN_PROBE_MS, type TokenProbe } from './service-watch.ts'
import {
  type ConsulAddress,
  type ConsulTransport,
  createTransport,
  requireOk,
} from './transport.ts'

/** What the Consul catalog is built from. The `catalog` section of the configuration has the same shape of address. */
export interface ConsulCatalogOptions extends ConsulAddress {
  /** This host's name in Consul, if known: then only its own instances are accepted at loopback addresses. */
  readonly node?: string | undefined
  /** Where other hosts reach this one. Default: the agent's address. */
  readonly nodeAddress?: string | undefined
  /** Where this host listens for scrapes, if it does: registered for those who scrape it. */
  readonly metrics?: SocketAddress | undefined
  /** Answers from another datacenter are rejected. */
  readonly datacenter?: string | undefined
  /** False leaves registration to the operator: register() then does nothing. */
  readonly register?: boolean | undefined
  readonly clock?: Clock
  readonly random?: Random
}

/** Most problems in {@link CatalogHealth}; the rest is in the log. */
const MAX_PROBLEMS = 50

/**
 * The catalog of one agent, and other uses of the same agent. The constructor sends no request, and an unreachable
 * agent is not an error.
 */
export class ConsulCatalog implements Catalog {
  readonly description: string
  /** For the certificate source, which follows the same agent. */
  readonly follower: Follower
  readonly #options: ConsulCatalogOptions
  readonly #parts: {
    readonly transport: ConsulTransport
    readonly log: Log
    readonly clock: Clock
    readonly random: Random
  }
  readonly #registrar: Registrar
  readonly #tokenProbe: TokenProbe
  readonly #readNode: NodeReader
  readonly #hints: Disposable
  readonly #serverCheck: ServerCheck
  readonly #serviceWatches = new Set<ServiceWatch>()
  readonly #watchByName = new Map<string, ServiceWatch>()
  readonly #intentionWatches = new Set<IntentionWatch>()
  readonly #listWatches = new Set<ServiceListWatch>()

  /**
   * @throws MeshError HM_CONSUL_ADDRESS_INVALID, HM_CONSUL_CA_UNREADABLE, HM_CONSUL_TOKEN_UNREADABLE,
   * HM_CONSUL_TOKEN_INVALID
   */
  constructor(options: ConsulCatalogOptions, log: Log) {
    const { clock = systemClock, random = systemRandom, nodeAddress, metrics } = options
    const transport = createTransport(options, clock)
    const parts = { transport, log, clock, random }
    this.description = `consul ${options.address}`
    this.#options = options
    this.#parts = parts
    this.follower = new Follower(transport, parts)
    this.#registrar = new Registrar({ ...parts, nodeAddress, metrics })
    this.#tokenProbe = createTokenProbe(transport, clock)
    this.#readNode = createNodeReader(transport, clock)
    this.#hints = startChangeHints(this.follower)
    this.#serverCheck = new ServerCheck({
      ...parts,
      wantsAll: () => this.#listWatches.size > 0,
      onRecovered: () => {
        for (const watch of this.#listWatches) watch.recheck()
        this.follower.retry()
      },
    })
  }

  /** Reads the agent's identity. @throws MeshError HM_CONSUL_UNREACHABLE, HM_CONSUL_FORBIDDEN and others */
  readAgentSelf(): Promise<AgentSelf> {
    return readAgentSelf(this.#parts.transport)
  }

  watchService(
    name: string,
    onChange: (service: CatalogService) => void,
    last?: CatalogService,
  ): Disposable {
    const watch = new ServiceWatch(name, onChange, {
      ...this.#options,
      follower: this.follower,
      readNode: this.#readNode,
      clock: this.#parts.clock,
      tokenProbe: this.#tokenProbe,
      last,
      established: [...this.#listWatches].flatMap((list) => list.addressesOf(name)),
    })
    this.#watchByName.set(name, watch)
    const opened = kept(watch, this.#serviceWatches)
    return {
      [Symbol.dispose]: () => {
        // The list continues with the accepted addresses.
        for (const list of this.#listWatches) list.adopt(name, watch.addresses())
        if (this.#watchByName.get(name) === watch) this.#watchByName.delete(name)
        opened[Symbol.dispose]()
      },
    }
  }

  watchServiceList(
    onChange: (services: readonly ListedService[]) => void,
    last?: readonly ListedService[],
  ): Disposable {
    const watch = new ServiceListWatch(onChange, {
      ...this.#parts,
      readNode: this.#readNode,
      followed: (name) => this.#watchByName.get(name)?.addresses(),
      follower: this.follower,
      last,
    })
    return kept(watch, this.#listWatches)
  }

  watchPolicies(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
    last?: readonly CatalogPolicy[],
  ): Disposable {
    const options = { ...this.#parts, follower: this.follower, last }
    return kept(new IntentionWatch(destinations, onChange, options), this.#intentionWatches)
  }

  async register(services: readonly LocalService[], tunnelPort: number): Promise<void> {
    if (this.#options.register !== false) await this.#registrar.register(services, tunnelPort)
  }

  deregister(): Promise<void> {
    return this.#registrar.deregister()
  }

  leave(): void {
    this.#registrar.leave()
  }

  health(): CatalogHealth {
    const watches = this.follower.health()
    const goodAtMs = [
      this.#registrar.lastGoodAtMs(),
      ...watches.map(({ lastGoodAtMs }) => lastGoodAtMs),
    ].filter((ms) => ms !== undefined)
    const problems = this.#problems(watches)
    const distinct = new Map(problems.toReversed().map((problem) => [problem.message, problem]))
    return {
      lastGoodAtMs: goodAtMs.length === 0 ? undefined : Math.max(...goodAtMs),
      problems: [...distinct.values()].toReversed().slice(0, MAX_PROBLEMS),
      warnings: [
        ...new Set(
          [...this.#serviceWatches, ...this.#listWatches].flatMap((watch) => watch.warnings()),
        ),
      ].slice(0, MAX_PROBLEMS),
      lastContactMs: this.#serverCheck.lastContactMs(),
    }
  }

  failingChecks(): ReadonlyMap<string, string> {
    return new Map([...this.#serviceWatches].flatMap((watch) => [...watch.failing()]))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#registrar[Symbol.dispose]()
    this.#hints[Symbol.dispose]()
    this.#serverCheck[Symbol.dispose]()
    for (const watches of [this.#serviceWatches, this.#intentionWatches, this.#listWatches])
      for (const watch of watches) watch[Symbol.dispose]()
    this.follower[Symbol.dispose]()
    this.#parts.transport[Symbol.dispose]()
  }

  #problems(watches: readonly FollowHealth[]): readonly Problem[] {
    const lists = [...this.#listWatches]
    const hidden = [this.#serverCheck.problem()].filter((problem) => problem !== undefined)
    return [
      ...watches.flatMap(watchProblem),
      ...named('HM_CONSUL_CREDENTIAL_UNUSABLE', this.#parts.transport.problems()),
      ...named('HM_CONSUL_INCOMPLETE', hidden),
      ...named('HM_CONSUL_NOT_REGISTERED', this.#registrar.problems()),
      ...named(
        'HM_CATALOG_ENTRY_UNUSABLE',
        [...this.#serviceWatches].flatMap((watch) => watch.problems()),
      ),
      ...[...this.#intentionWatches].flatMap((watch) => watch.problems()),
      ...named(
        'HM_CONSUL_INCOMPLETE',
        lists.flatMap((list) => list.problems()),
      ),
      ...named(
        'HM_CATALOG_TOO_LARGE',
        lists.flatMap((list) => list.excess()),
      ),
    ]
  }
}

/** Keeps `watch` among `watches` until it is disposed. */
function kept<W extends Disposable>(watch: W, watches: Set<W>): Disposable {
  watches.add(watch)
  return {
    [Symbol.dispose]() {
      watches.delete(watch)
      watch[Symbol.dispose]()
    },
  }
}

/** Reads an agent's identity: node name, datacenter, address, version. One call, no retry. */
async function readAgentSelf(transport: ConsulTransport): Promise<AgentSelf> {
  const answer = await transport.call('GET', '/v1/agent/self')
  return decodeAgentSelf(requireOk(answer, 'reading /v1/agent/self (agent:read)', AGENT_RULE).body)
}

function named(code: ProblemCode, messages: readonly string[]): Problem[] {
  return messages.map((message) => new Problem(code, message, { subject: subjectOf(message) }))
}

/** While Consul is unreachable, all failing watches report the same problem. */
function watchProblem({ path, problem, code, unreachable }: FollowHealth): Problem[] {
  if (problem === undefined || path === SUMMARY_PATH) return []
  const subject = unreachable ? 'Consul' : (path.split('?', 1)[0] ?? path)
  const message = unreachable ? problem : `${subject}: ${problem}`
  const cause = isErrorCode(code) ? new MeshError(code, problem) : problem
  return [Problem.of(cause, 'HM_CONSUL_QUERY_FAILED', { message, subject })]
}

function createTokenProbe(transport: ConsulTransport, clock: Clock): TokenProbe {
  const askedAtMs = new Map<string, number>()
  const readAtMs = new Map<string, number>()
  return {
    canRead: (datacenter = '', sinceMs) =>
      (readAtMs.get(datacenter) ?? Number.NEGATIVE_INFINITY) >= sinceMs,
    ask(datacenter = '') {
      const nowMs = clock.monotonicMs()
      if (nowMs - (askedAtMs.get(datacenter) ?? Number.NEGATIVE_INFINITY) < TOKEN_PROBE_MS) return
      askedAtMs.set(datacenter, nowMs)
      const query = datacenter === '' ? '' : `?dc=${encodeURIComponent(datacenter)}`
      transport.call('GET', `/v1/catalog/services${query}`, { levels: NAME_LEVELS }).then(
        (answer) => {
          // Consul's own servers are always in the catalog: an empty answer means that the token may not read it.
          if (decodeServiceNames(requireOk(answer, 'reading services').body).length > 0)
            readAtMs.set(datacenter, clock.monotonicMs())
        },
        // A failure counts as "cannot read"; the watches report the reason.
        () => undefined,
      )
    },
  }
}
