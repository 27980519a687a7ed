/**
 * The address of this host's CA, and whether it answers. After a failure no calls are made until a retry is due.
 */
import { Retry } from '../../lib/backoff.ts'
import type { Clock, Random } from '../../lib/clock.ts'
import { errorCode, MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { Problem } from '../../model/problem.ts'
import { CaClient } from './ca-client.ts'

/** What a connection is built from. */
export interface CaConnectionOptions {
  readonly log: Log
  readonly clock: Clock
  readonly random: Random
  /** `host:port`; takes precedence over join tokens. */
  readonly server: string | undefined
  /** Called when the CA answers again. */
  readonly onBack: () => void
}

/** Retries while the CA is unreachable. Short, for a quick recovery when it is back. */
export const UNREACHABLE_BACKOFF = { minMs: 250, maxMs: 3_000 }

/** Retries after the CA has refused: it is unlikely to decide otherwise soon. */
export const REFUSED_BACKOFF = { minMs: 500, maxMs: 30_000 }

/** Failures that say nothing about the caller. */
const NETWORK_FAILURES: ReadonlySet<string> = new Set([
  'HM_CA_UNREACHABLE',
  'HM_CA_RATE_LIMITED',
  'HM_CA_BUSY',
  'HM_INTERNAL',
])

/** Whether a call failed on the network, or because of the state of the CA: the same call may succeed later. */
export function isNetworkFailure(thrown: unknown): boolean {
  return NETWORK_FAILURES.has(errorCode(thrown))
}

/** The connection to the one CA of this host. */
export class CaConnection implements Disposable {
  readonly #options: CaConnectionOptions
  readonly #retry: Retry
  #client: CaClient | undefined
  #problem: Problem | undefined

  /** @throws MeshError HM_CA_ADDRESS_INVALID */
  constructor(options: CaConnectionOptions) {
    this.#options = options
    this.#retry = new Retry(UNREACHABLE_BACKOFF, options.clock, options.random)
    if (options.server !== undefined) this.#client = new CaClient(options.server)
  }

  /** Undefined while the address of the CA is unknown. */
  get address(): string | undefined {
    return this.#client?.address
  }

  /** @throws MeshError HM_CA_NOT_ENROLLED while the address of the CA is unknown */
  get client(): CaClient {
    if (this.#client === undefined)
      throw new MeshError('HM_CA_NOT_ENROLLED', 'Nobody has said yet where the CA is')
    return this.#client
  }

  /** Why the CA cannot be reached; undefined while it answers. */
  get problem(): Problem | undefined {
    return this.#problem
  }

  /** Whether the CA may be called now. */
  get isDue(): boolean {
    return this.#retry.isDue
  }

  /** Whether a CA at `address` would be a different one from the current one. */
  isElsewhere(address: string): boolean {
    return this.#options.server === undefined && address !== this.address
  }

  /** Sets the address of the CA, unless it is known already. @throws MeshError HM_CA_ADDRESS_INVALID */
  locate(address: string): void {
    this.#client ??= new CaClient(address)
  }

  /** Calls another CA from now on, instead of the previous one. */
  replace(client: CaClient): void {
    if (client === this.#client) return
    this.#client?.[Symbol.dispose]()
    this.#client = client
  }

  /** Records that a call failed on the network. */
  noteFailure(thrown: unknown): void {
    this.#retry.failed()
    const problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED')
    if (this.#problem === undefined)
      this.#options.log.warn('The CA does not answer; what is there stays in use until it ends', {
        problem: problem.message,
      })
    this.#problem = problem
  }

  /** Records that the CA has answered. */
  noteAnswer(): void {
    this.#retry.reset()
    if (this.#problem === undefined) return
    this.#problem = undefined
    this.#options.log.info('The CA answers again')
    this.#options.onBack()
  }

  [Symbol.dispose](): void {
    this.#client?.[Symbol.dispose]()
  }
}
