/**
 * The certificates that this host uses: the newest from its source, passed on to the workers.
 */
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { Blocker, Readiness } from './readiness.ts'
import type { WorkerPool } from './worker-pool.ts'

/** What the certificates are for. */
export interface UsedCertificatesOptions {
  /** Names of the services of this host. */
  readonly services: readonly string[]
  /** A service for whose certificate no start waits; undefined if there is none. */
  readonly unawaited: string | undefined
  readonly pool: WorkerPool
  /** A start waits for the roots, and for the certificate of each service. */
  readonly readiness: Readiness
}

/** The roots and leaves of one daemon. */
export class UsedCertificates {
  readonly #pool: WorkerPool
  readonly #awaitedRoots: Blocker
  readonly #awaitedLeaves: ReadonlyMap<string, Blocker>
  readonly #names: ReadonlySet<string>
  readonly #leaves = new Map<string, Leaf>()
  #bundle: TrustBundle | undefined

  constructor({ services, unawaited, pool, readiness }: UsedCertificatesOptions) {
    this.#pool = pool
    this.#awaitedRoots = readiness.block('roots')
    this.#awaitedLeaves = new Map(
      services.map((name) => [name, readiness.block(`the certificate of ${name}`)]),
    )
    this.#names = new Set(unawaited === undefined ? services : [...services, unawaited])
  }

  /** Those in use now. */
  get leaves(): readonly Leaf[] {
    return [...this.#leaves.values()]
  }

  /** Undefined until the first roots come. */
  get bundle(): TrustBundle | undefined {
    return this.#bundle
  }

  /** Whether a peer of this service can be served: with roots and its certificate. */
  has(service: string): boolean {
    return this.#bundle !== undefined && this.#leaves.has(service)
  }

  /** Follows `source` until `parts` is disposed. */
  follow(source: CertificateSource, parts: AsyncDisposableStack): void {
    parts.use(
      source.watchRoots((bundle) => {
        this.#bundle = bundle
        this.#pool.setRoots(bundle)
        this.#awaitedRoots.release()
      }),
    )
    for (const name of this.#names)
      parts.use(
        source.watchLeaf(name, (leaf) => {
          this.#leaves.set(name, leaf)
          this.#pool.setLeaf(leaf)
          this.#awaitedLeaves.get(name)?.release()
        }),
      )
  }
}
