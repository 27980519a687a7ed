/**
 * The interface of a catalog: which instances a service has, and who may reach a service.
 *
 * Two implementations: `consul/` (a local agent) and `file/` (one YAML file). When its source fails, each keeps its
 * last good answer and reports its age; neither ever turns an error into an empty answer.
 */
import type { SocketAddress } from '../../model/address.ts'
import type { DefaultPolicy, Intention } from '../../model/intention.ts'
import type { Problem } from '../../model/problem.ts'
import type { Routing } from '../../model/route.ts'
import type { LocalService } from '../../model/service.ts'

/** An address at which an instance of a service listens, with or without a proxy in front of it. */
export interface InstanceAddress extends SocketAddress {
  readonly node: string
  /**
   * Order of claims: of two services that claim an address, the one with the lower number has it. {@link YIELDING}
   * loses to any other.
   */
  readonly since: number
  /** Wall clock of when the catalog stopped listing the instance; absent while it is listed. */
  readonly goneSinceMs?: number
}

/** {@link InstanceAddress.since} of a claim that loses to any other. */
export const YIELDING = Number.MAX_SAFE_INTEGER

/** {@link InstanceAddress.since} of a claim that may be older or newer than another; one of known age beats both. */
export const DISPUTED = YIELDING - 1

/**
 * A service in the catalog. Its clusters are those that receive its traffic; after a redirect they belong to other
 * services or datacenters. `local` of endpoints is always false here: compile() sets it.
 * Plain JSON, because it is written to disk: whoever changes its shape, or that of a policy, of the list or of their
 * parts, must raise `CATALOG_STATE_VERSION` in remembered.ts.
 */
export interface CatalogService extends Routing {
  readonly name: string
  readonly protocol: string
  /** The catalog's own virtual addresses for it, canonical; often none. */
  readonly virtualIps: readonly string[]
  /** Where its own instances listen, including those that no endpoint serves now. */
  readonly addresses: readonly InstanceAddress[]
}

/** A service that this host does not follow, as the catalog lists it; written to disk like {@link CatalogService}. */
export interface ListedService {
  readonly name: string
  /** As in {@link CatalogService}; it may be minutes old. */
  readonly virtualIps: readonly string[]
  /** As in {@link CatalogService}; absent where none is known. */
  readonly addresses?: readonly InstanceAddress[]
  /**
   * Wall clock of when the catalog stopped listing it as a service of the mesh; absent while it is listed. Callers
   * may still have its addresses and expect the mesh there.
   */
  readonly goneSinceMs?: number
}

/** The intentions whose destination is one service, including wildcards. */
export interface CatalogPolicy {
  readonly destination: string
  readonly intentions: readonly Intention[]
  readonly defaultPolicy: DefaultPolicy
}

/** The state of a catalog's connection to its source. */
export interface CatalogHealth {
  /** Monotonic milliseconds of the last good answer of any kind; undefined before the first. */
  readonly lastGoodAtMs: number | undefined
  /** What is wrong now; empty when nothing is. */
  readonly problems: readonly Problem[]
  /** Invalid entries that others wrote to the catalog: they are ignored and do not affect this host. */
  readonly warnings?: readonly string[]
  /** Time since the answering server last heard from its leader; undefined where there is no leader. */
  readonly lastContactMs?: number | undefined
}

/** Where services, instances and intentions come from. Watches run until they are disposed. */
export interface Catalog extends AsyncDisposable {
  /** Short description for status: `consul http://127.0.0.1:8500`, `file /etc/hostmesh/catalog.yaml`. */
  readonly description: string
  /**
   * Follows the instances of one service. `onChange` is called with every answer that differs from the previous one,
   * never with an error; a service that the catalog does not have has no endpoints. `last` is the answer of an
   * earlier run: the first answer is checked against it for a sudden loss, as each later one is against the one before.
   */
  watchService(
    name: string,
    onChange: (service: CatalogService) => void,
    last?: CatalogService,
  ): Disposable
  /** Follows the list of services in the mesh, sorted by name. `last` as above. */
  watchServiceList(
    onChange: (services: readonly ListedService[]) => void,
    last?: readonly ListedService[],
  ): Disposable
  /** Follows the intentions for these destinations. `last` as above. */
  watchPolicies(
    destinations: readonly string[],
    onChange: (policies: readonly CatalogPolicy[]) => void,
    last?: readonly CatalogPolicy[],
  ): Disposable
  /**
   * Registers this host's services, each reachable at `tunnelPort`, and keeps them registered until
   * {@link Catalog.deregister}. Services without a target are not registered.
   */
  register(services: readonly LocalService[], tunnelPort: number): Promise<void>
  /** Removes what register() registered. Bounded in time; failures are logged, not thrown. */
  deregister(): Promise<void>
  /**
   * Stops maintaining what register() registered, without removing it: another process of this host maintains it now.
   * Absent in catalogs that maintain nothing.
   */
  leave?(): void
  health(): CatalogHealth
  /**
   * The health check that keeps each instance of a followed service from passing, and its output, by
   * `Endpoint.key`: one printable sentence, as old as the check's last change. Absent where checks are unknown.
   */
  failingChecks?(): ReadonlyMap<string, string>
}
