/**
 * What the daemon asks of a catalog: which instances a service has, and who may reach a service.
 *
 * Two rooms satisfy it: `consul/` (a local agent) and `file/` (one YAML file). Both keep their last good
 * answer when their source fails and say how old it is; neither ever turns an error into an empty
 * answer.
 */
import type { SocketAddress } from '../../model/address.ts'
import type { DefaultPolicy, Intention } from '../../model/intention.ts'
import type { Problem } from '../../model/problem.ts'
import type { Routing } from '../../model/route.ts'
import type { LocalService } from '../../model/service.ts'

/** An address at which an instance of a service listens, whether a proxy stands for it or not. */
export interface InstanceAddress extends SocketAddress {
  readonly node: string
  /**
   * Who claims an address first has it: of two services the one with the lower number. {@link YIELDING} gives way
   * to any other.
   */
  readonly since: number
  /** Wall clock of when the catalog ceased to list the instance; left out while it does. */
  readonly goneSinceMs?: number
}

/** {@link InstanceAddress.since} of a claim that any other beats. */
export const YIELDING = Number.MAX_SAFE_INTEGER

/** {@link InstanceAddress.since} of a claim beside another of which nobody can tell which was first: whoever was there for certain beats both. */
export const DISPUTED = YIELDING - 1

/**
 * What a catalog says of one service. Its clusters are those that its traffic goes to: of other services or
 * datacenters where it is redirected to them. `local` of endpoints is left false: compile() decides it.
 * Plain JSON, because it is remembered on disk; who changes its shape, that of a policy, of the list or of their
 * parts raises `CATALOG_STATE_VERSION` in remembered.ts.
 */
export interface CatalogService extends Routing {
  readonly name: string
  readonly protocol: string
  /** The catalog's own virtual addresses for it, canonical; often none. */
  readonly virtualIps: readonly string[]
  /** Where its own instances listen, those that no endpoint serves at the moment included. */
  readonly addresses: readonly InstanceAddress[]
}

/** What a catalog says of a service that nobody follows; remembered as above. */
export interface ListedService {
  readonly name: string
  /** As in {@link CatalogService}; it may be minutes old. */
  readonly virtualIps: readonly string[]
  /** The same; left out where none is known. */
  readonly addresses?: readonly InstanceAddress[]
  /**
   * Wall clock of when the catalog ceased to have it as a service of the mesh; left out while it has. Callers may
   * still have its addresses, and mean the mesh by them.
   */
  readonly goneSinceMs?: number
}

/** The rules whose destination is one service, wildcards included. */
export interface CatalogPolicy {
  readonly destination: string
  readonly intentions: readonly Intention[]
  readonly defaultPolicy: DefaultPolicy
}

/** How well a catalog is in touch with its source. */
export interface CatalogHealth {
  /** Monotonic milliseconds of the last good answer of any kind; undefined before the first. */
  readonly lastGoodAtMs: number | undefined
  /** What is wrong now; empty when nothing is. */
  readonly problems: readonly Problem[]
  /** What somebody else has written there and should not have: it is not obeyed, and costs this host nothing. */
  readonly warnings?: readonly string[]
  /** How long ago the server that answers had last heard from its leader; undefined where there is none. */
  readonly lastContactMs?: number | undefined
}

/** Where services, instances and intentions come from. Watches run until they are disposed. */
export interface Catalog extends AsyncDisposable {
  /** A few words for status: `consul http://127.0.0.1:8500`, `file /etc/hostmesh/catalog.yaml`. */
  readonly description: string
  /**
   * Follows the instances of one service. `onChange` is called with every answer that differs from the
   * last, never with an error; a service that the catalog does not know has no endpoints. `last` is the
   * answer of an earlier run: the first one is doubted in its light, as every later one is.
   */
  watchService(
    name: string,
    onChange: (service: CatalogService) => void,
    last?: CatalogService,
  ): Disposable
  /** Follows which services the mesh has, sorted by name. `last` as above. */
  watchServiceList(
    onChange: (services: readonly ListedService[]) => void,
    last?: readonly ListedService[],
  ): Disposable
  /** Follows the rules for these destinations. `last` as above. */
  watchPolicies(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
    last?: readonly CatalogPolicy[],
  ): Disposable
  /**
   * Makes this host's services known, each reachable at `tunnelPort`, and keeps them known until
   * {@link Catalog.deregister}. Services without a target are not registered.
   */
  register(services: readonly LocalService[], tunnelPort: number): Promise<void>
  /** Takes back what register() made known. Bounded in time; failures are logged, not thrown. */
  deregister(): Promise<void>
  /** Keeps what register() made known no more, and leaves it as it is: another process of this host keeps it now. Without it there is nothing to keep. */
  leave?(): void
  health(): CatalogHealth
  /**
   * Which health check keeps each instance of a followed service from passing, and what it says, by
   * `Endpoint.key`: one printable sentence, as old as the check's last change. Left out where checks are unknown.
   */
  failingChecks?(): ReadonlyMap<string, string>
}
