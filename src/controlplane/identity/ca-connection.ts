/**
 * Where the CA of this host is, and whether it answers. After a failure nobody calls it until it may be tried again.
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
  /** `host:port` that no join token changes. */
  readonly server: string | undefined
  /** The CA answers again. */
  readonly onBack: () => void
}

/** Tries while the CA cannot be reached. Short, so that all is well soon after its return. */
export const UNREACHABLE_BACKOFF = { minMs: 250, maxMs: 3_000 }

/** Tries after the CA has said no: it will hardly change its mind soon. */
export const REFUSED_BACKOFF = { minMs: 500, maxMs: 30_000 }

/** Failures that say nothing about who asks. */
const NETWORK_FAILURES: ReadonlySet<string> = new Set([
  'HM_CA_UNREACHABLE',
  'HM_CA_RATE_LIMITED',
  'HM_CA_BUSY',
  'HM_INTERNAL',
])

/** Whether a call failed on the way, or because of the state the CA is in: the same call may work later. */
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

  /** Undefined before anybody has said where the CA is. */
  get address(): string | undefined {
    return this.#client?.address
  }

  /** @throws MeshError HM_CA_NOT_ENROLLED before anybody has said where the CA is */
  get client(): CaClient {
    if (this.#client === undefined)
      throw new MeshError('HM_CA_NOT_ENROLLED', 'Nobody has said yet where the CA is')
    return this.#client
  }

  /** What is wrong with it; undefined while the CA answers. */
  get problem(): Problem | undefined {
    return this.#problem
  }

  /** Whether the CA may be called now. */
  get isDue(): boolean {
    return this.#retry.isDue
  }

  /** Whether a CA at `address` is another than the one we have. */
  isElsewhere(address: string): boolean {
    return this.#options.server === undefined && address !== this.address
  }

  /** The CA is at `address`, unless it is known already where. @throws MeshError HM_CA_ADDRESS_INVALID */
  locate(address: string): void {
    this.#client ??= new CaClient(address)
  }

  /** Calls another CA from now on, in place of the one before. */
  replace(client: CaClient): void {
    if (client === this.#client) return
    this.#client?.[Symbol.dispose]()
    this.#client = client
  }

  /** A call has failed on the way. */
  noteFailure(thrown: unknown): void {
    this.#retry.failed()
    const problem = Problem.of(thrown, 'HM_CERT_NOT_ISSUED')
    if (this.#problem === undefined)
      this.#options.log.warn('The CA does not answer; what is there stays in use until it ends', {
        problem: problem.message,
      })
    this.#problem = problem
  }

  /** The CA has answered. */
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
