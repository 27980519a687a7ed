/**
 * The catalog that a local Consul agent keeps: instances, intentions, registration.
 *
 * Puts the parts of this folder together; each part keeps its own last good answer. What is decided here:
 * an answer in which many instances of a service, or its last ones, are suddenly gone is doubted until it has been
 * repeated, because an emptied catalog, a restored server and a token without rights all look like that.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import type { Endpoint } from '../../../model/endpoint.ts'
import type { Catalog, CatalogHealth, CatalogService, Watch } from '../catalog.ts'
import { createFollower, type Follower } from './blocking-query.ts'
import { SUMMARY_PATH, startChangeHints } from './change-hints.ts'
import {
  type AgentSelf,
  type DecodedChain,
  type DecodedHealth,
  decodeAgentSelf,
  decodeChain,
  decodeHealth,
  decodeServiceNames,
  defaultChain,
} from './decode.ts'
import { DOUBT_MS, isSuddenLoss } from './doubt.ts'
import { type IntentionWatch, watchIntentions } from './intentions.ts'
import { createRegistrar } from './registration.ts'
import { type ServiceNamesWatch, watchServiceNames } from './service-names.ts'
import {
  type ConsulAddress,
  type ConsulTransport,
  createTransport,
  requireOk,
} from './transport.ts'

/** What the Consul catalog needs to know. The `catalog` section of the configuration has the address's shape. */
export interface ConsulCatalogOptions extends ConsulAddress {
  /** This host's name in Consul, when it is known: instances on loopback are then believed of this host only. */
  readonly node?: string | undefined
  /** Where other hosts reach this one; the agent's address unless given. */
  readonly nodeAddress?: string | undefined
  /** Answers from another datacenter are refused. */
  readonly datacenter?: string | undefined
  /** False leaves registration to the operator: register() then does nothing. */
  readonly register?: boolean | undefined
  readonly clock?: Clock
  readonly random?: Random
}

/** A catalog, and what else the same agent is good for. */
export interface ConsulCatalog extends Catalog {
  /** For the certificate source, which follows the same agent. */
  readonly follower: Follower
  /** Asks the agent who it is. @throws MeshError HM_CONSUL_UNREACHABLE, HM_CONSUL_FORBIDDEN and others */
  readAgentSelf(): Promise<AgentSelf>
}

/** How long it is remembered whether the token sees any service, milliseconds. */
const SIGHT_MS = 5_000

/** The first answer waits this long for protocol and timeout, milliseconds. */
const CHAIN_PATIENCE_MS = 2_000

/** Problems in {@link CatalogHealth}; the rest is in the log. */
const MAX_PROBLEMS = 50

/**
 * Opens the catalog; nothing has been asked yet when it returns, and an agent that is down is no error.
 * @throws MeshError HM_CONSUL_ADDRESS_INVALID, HM_CONSUL_CA_UNREADABLE, HM_CONSUL_TOKEN_UNREADABLE,
 * HM_CONSUL_TOKEN_INVALID
 */
export function createConsulCatalog(options: ConsulCatalogOptions, log: Log): ConsulCatalog {
  const { clock = systemClock, random = systemRandom } = options
  const transport = createTransport(options, clock)
  const parts = { transport, log, clock, random }
  const follower = createFollower(transport, parts)
  const registrar = createRegistrar({ ...parts, nodeAddress: options.nodeAddress })
  const sight = createSight(transport, clock)
  const hints = startChangeHints(follower)
  const serviceWatches = new Set<ServiceWatch>()
  const otherWatches = new Set<IntentionWatch | ServiceNamesWatch>()

  function kept<W extends Watch>(watch: W, watches: Set<W>): Watch {
    watches.add(watch)
    return {
      close() {
        watches.delete(watch)
        watch.close()
      },
    }
  }

  function health(): CatalogHealth {
    const goodAtMs = [
      registrar.lastGoodAtMs(),
      ...follower.health().map((watch) => watch.lastGoodAtMs),
    ].filter((ms) => ms !== undefined)
    const problems = new Set([
      ...[transport.tokenProblem()].filter((problem) => problem !== undefined),
      ...registrar.problems(),
      ...follower
        .health()
        .filter(({ path, problem }) => problem !== undefined && path !== SUMMARY_PATH)
        .map((watch) =>
          watch.unreachable
            ? `${watch.problem}`
            : `${watch.path.split('?', 1)[0]}: ${watch.problem}`,
        ),
      ...[...serviceWatches, ...otherWatches].flatMap((watch) => watch.problems()),
    ])
    return {
      lastGoodAtMs: goodAtMs.length === 0 ? undefined : Math.max(...goodAtMs),
      problems: [...problems].slice(0, MAX_PROBLEMS),
    }
  }

  return {
    description: `consul ${options.address}`,
    follower,
    readAgentSelf: () => readAgentSelf(transport),
    watchService: (name, onChange, last) =>
      kept(
        watchOneService(name, onChange, { ...options, follower, clock, sight, last }),
        serviceWatches,
      ),
    watchServiceNames: (onChange, last) =>
      kept(watchServiceNames(onChange, { ...parts, follower, last }), otherWatches),
    watchPolicies: (destinations, onChange, last) =>
      kept(watchIntentions(destinations, onChange, { ...parts, follower, last }), otherWatches),
    register: async (services, tunnelPort) => {
      if (options.register !== false) await registrar.register(services, tunnelPort)
    },
    deregister: () => registrar.deregister(),
    health,
    async [Symbol.asyncDispose]() {
      registrar.close()
      hints.close()
      for (const watch of [...serviceWatches, ...otherWatches]) watch.close()
      follower.close()
      transport[Symbol.dispose]()
    },
  }
}

/** Asks an agent who it is: node name, datacenter, address, version. One call, no retry. */
export async function readAgentSelf(transport: ConsulTransport): Promise<AgentSelf> {
  const answer = await transport.call('GET', '/v1/agent/self')
  return decodeAgentSelf(requireOk(answer, 'reading /v1/agent/self (agent:read)').body)
}

interface ServiceWatch extends Watch {
  problems(): readonly string[]
}

/** Whether the token sees any service at all: lost rights show as empty lists, not as errors. */
interface Sight {
  /** Looks again when the last look is old. */
  look(): void
  /** Whether the last look, not older than `sinceMs`, saw something. */
  isClear(sinceMs: number): boolean
}

function createSight(transport: ConsulTransport, clock: Clock): Sight {
  let lookedAtMs = Number.NEGATIVE_INFINITY
  let clearAtMs = Number.NEGATIVE_INFINITY
  return {
    isClear: (sinceMs) => clearAtMs >= sinceMs,
    look() {
      const nowMs = clock.monotonicMs()
      if (nowMs - lookedAtMs < SIGHT_MS) return
      lookedAtMs = nowMs
      transport.call('GET', '/v1/catalog/services').then(
        (answer) => {
          // Consul's own servers are always in the catalog: an empty one means that we may not read it.
          if (decodeServiceNames(requireOk(answer, 'reading services').body).length > 0)
            clearAtMs = clock.monotonicMs()
        },
        // Not seeing is the point; the watches report what is wrong.
        () => undefined,
      )
    },
  }
}

interface ServiceWatchOptions {
  readonly sight: Sight
  readonly follower: Follower
  readonly clock: Clock
  readonly node?: string | undefined
  readonly datacenter?: string | undefined
  /** The answer of an earlier run. */
  readonly last: CatalogService | undefined
}

function watchOneService(
  name: string,
  onChange: (service: CatalogService) => void,
  options: ServiceWatchOptions,
): ServiceWatch {
  const { follower, clock, sight, last } = options
  let instances: DecodedHealth | undefined
  let believed = last?.endpoints ?? []
  let chain: DecodedChain | undefined
  let doubtedAtMs: number | undefined
  let published: string | undefined
  let isClosed = false

  function publish(): void {
    if (instances === undefined || chain === undefined || isClosed) return
    const service: CatalogService = {
      name,
      protocol: chain.protocol,
      connectTimeoutMs: chain.connectTimeoutMs,
      virtualIps: instances.virtualIps,
      endpoints: instances.endpoints,
    }
    const mark = JSON.stringify(service)
    if (mark === published) return
    published = mark
    onChange(service)
  }

  const encoded = encodeURIComponent(name)
  const instanceWatch = follower.follow(
    `/v1/health/connect/${encoded}`,
    (body) => {
      const decoded = decodeHealth(name, body, options)
      if (isDoubtful(believed, decoded.endpoints)) {
        doubtedAtMs ??= clock.monotonicMs()
        sight.look()
        const isOld = clock.monotonicMs() - doubtedAtMs >= DOUBT_MS
        if (!isOld || !sight.isClear(doubtedAtMs - SIGHT_MS))
          throw new MeshError(
            'HM_CONSUL_ANSWER_DOUBTED',
            `Consul suddenly names ${decoded.endpoints.length} instances of ${name} in place of ` +
              `${believed.length}: ` +
              (isOld
                ? 'the token seems to have lost service:read, so that is not believed'
                : 'asking again before that is believed'),
          )
      }
      doubtedAtMs = undefined
      instances = decoded
      believed = decoded.endpoints
      publish()
    },
    { subject: name },
  )
  const chainWatch = follower.follow(
    `/v1/discovery-chain/${encoded}`,
    (body) => {
      chain = body === undefined ? defaultChain : decodeChain(name, body)
      publish()
    },
    { priority: 'cold' },
  )
  const patience = setTimeout(() => {
    chain ??= last === undefined ? defaultChain : chainOf(last)
    publish()
  }, CHAIN_PATIENCE_MS)

  return {
    problems: () => instances?.problems ?? [],
    close() {
      isClosed = true
      clearTimeout(patience)
      instanceWatch.close()
      chainWatch.close()
    },
  }
}

/** What an earlier answer says in place of a chain that has not been read yet. */
function chainOf({ protocol, connectTimeoutMs }: CatalogService): DecodedChain {
  return { protocol, connectTimeoutMs }
}

/** Whether more instances vanished at once than a deployment takes away. */
export function isDoubtful(before: readonly Endpoint[], after: readonly Endpoint[]): boolean {
  return isSuddenLoss(
    before.map((endpoint) => endpoint.key),
    after.map((endpoint) => endpoint.key),
  )
}
