/**
 * The catalog that a local Consul agent keeps: instances, intentions, registration.
 *
 * Puts the parts of this folder together; each part keeps its own last good answer.
 */
import { type Clock, type Random, systemClock, systemRandom } from '../../../lib/clock.ts'
import { isErrorCode, MeshError } from '../../../lib/errors.ts'
import type { Log } from '../../../lib/log.ts'
import { Problem, type ProblemCode } from '../../../model/problem.ts'
import type { Catalog, CatalogHealth, Watch } from '../catalog.ts'
import { createFollower, type Follower, type FollowHealth } from './blocking-query.ts'
import { SUMMARY_PATH, startChangeHints } from './change-hints.ts'
import { type AgentSelf, decodeAgentSelf, decodeServiceNames, NAME_LEVELS } from './decode.ts'
import { type IntentionWatch, subjectOf, watchIntentions } from './intentions.ts'
import { createNodeReader } from './node-reader.ts'
import { startPulse } from './pulse.ts'
import { createRegistrar } from './registration.ts'
import { AGENT_RULE } from './rights.ts'
import { type ServiceListWatch, watchServiceList } from './service-list.ts'
import { ServiceWatch, TOKEN_PROBE_MS, type TokenProbe } from './service-watch.ts'
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
  const tokenProbe = createTokenProbe(transport, clock)
  const readNode = createNodeReader(transport, clock)
  const hints = startChangeHints(follower)
  const serviceWatches = new Set<ServiceWatch>()
  const watchByName = new Map<string, ServiceWatch>()
  const intentionWatches = new Set<IntentionWatch>()
  const listWatches = new Set<ServiceListWatch>()
  const pulse = startPulse({
    ...parts,
    wantsAll: () => listWatches.size > 0,
    onHealed() {
      for (const watch of listWatches) watch.recheck()
      follower.retry()
    },
  })

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
    const problems = [
      ...follower.health().flatMap(watchProblem),
      ...named('HM_CONSUL_CREDENTIAL_UNUSABLE', transport.problems()),
      ...named(
        'HM_CONSUL_INCOMPLETE',
        [pulse.problem()].filter((problem) => problem !== undefined),
      ),
      ...named('HM_CONSUL_NOT_REGISTERED', registrar.problems()),
      ...named(
        'HM_CATALOG_ENTRY_UNUSABLE',
        [...serviceWatches].flatMap((watch) => watch.problems()),
      ),
      ...[...intentionWatches].flatMap((watch) => watch.problems()),
      ...named(
        'HM_CONSUL_INCOMPLETE',
        [...listWatches].flatMap((watch) => watch.problems()),
      ),
      ...named(
        'HM_CATALOG_TOO_LARGE',
        [...listWatches].flatMap((watch) => watch.excess()),
      ),
    ]
    const distinct = new Map(problems.toReversed().map((problem) => [problem.message, problem]))
    return {
      lastGoodAtMs: goodAtMs.length === 0 ? undefined : Math.max(...goodAtMs),
      problems: [...distinct.values()].toReversed().slice(0, MAX_PROBLEMS),
      warnings: [
        ...new Set([...serviceWatches, ...listWatches].flatMap((watch) => watch.warnings())),
      ].slice(0, MAX_PROBLEMS),
      lastContactMs: pulse.lastContactMs(),
    }
  }

  return {
    description: `consul ${options.address}`,
    follower,
    readAgentSelf: () => readAgentSelf(transport),
    watchService(name, onChange, last) {
      const watch = new ServiceWatch(name, onChange, {
        ...options,
        follower,
        readNode,
        clock,
        tokenProbe,
        last,
        established: [...listWatches].flatMap((list) => list.addressesOf(name)),
      })
      watchByName.set(name, watch)
      const opened = kept(watch, serviceWatches)
      return {
        close() {
          // The list goes on with what is believed.
          for (const list of listWatches) list.adopt(name, watch.addresses())
          if (watchByName.get(name) === watch) watchByName.delete(name)
          opened.close()
        },
      }
    },
    watchServiceList: (onChange, last) =>
      kept(
        watchServiceList(onChange, {
          ...parts,
          readNode,
          followed: (name) => watchByName.get(name)?.addresses(),
          follower,
          last,
        }),
        listWatches,
      ),
    watchPolicies: (destinations, onChange, last) =>
      kept(watchIntentions(destinations, onChange, { ...parts, follower, last }), intentionWatches),
    register: async (services, tunnelPort) => {
      if (options.register !== false) await registrar.register(services, tunnelPort)
    },
    deregister: () => registrar.deregister(),
    leave: () => registrar.leave(),
    health,
    failingChecks: () => new Map([...serviceWatches].flatMap((watch) => [...watch.failing()])),
    async [Symbol.asyncDispose]() {
      registrar.close()
      hints.close()
      pulse.close()
      for (const watch of [...serviceWatches, ...intentionWatches, ...listWatches]) watch.close()
      follower.close()
      transport[Symbol.dispose]()
    },
  }
}

/** Asks an agent who it is: node name, datacenter, address, version. One call, no retry. */
async function readAgentSelf(transport: ConsulTransport): Promise<AgentSelf> {
  const answer = await transport.call('GET', '/v1/agent/self')
  return decodeAgentSelf(requireOk(answer, 'reading /v1/agent/self (agent:read)', AGENT_RULE).body)
}

function named(code: ProblemCode, messages: readonly string[]): Problem[] {
  return messages.map((message) => new Problem(code, message, { subject: subjectOf(message) }))
}

/** A watch without an answer of its own says what all of them say: that Consul is away. */
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
          // Consul's own servers are always in the catalog: an empty one means that we may not read it.
          if (decodeServiceNames(requireOk(answer, 'reading services').body).length > 0)
            readAtMs.set(datacenter, clock.monotonicMs())
        },
        // That it cannot read is the answer; the watches report what is wrong.
        () => undefined,
      )
    },
  }
}
