/**
 * A certificate source that starts with what it had before the daemon was restarted.
 *
 * Wraps a source whose origin may be unreachable. Stored certificates are validated like new ones (a leaf that has
 * expired or does not match its roots is never used), and are used until the inner source supplies something. The file
 * contains private keys: mode 0600, never logged, never in the admin API.
 */
import { z } from 'zod'
import { type Clock, systemClock } from '../../lib/clock.ts'
import type { Log } from '../../lib/log.ts'
import type { StateFile } from '../../lib/state-file.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import type { Problem } from '../../model/problem.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource } from './certificate-source.ts'
import { readRoots } from './x509.ts'

/** Version of the stored data: raised with every change of its shape. */
export const CERTIFICATE_STATE_VERSION = 1

/** Longest body of the file, bytes: a thousand services with a key and two certificates each. */
export const MAX_CERTIFICATE_STATE_BYTES = 16 * 1024 * 1024

/** What a remembered source is built from. */
export interface RememberedCertificatesOptions {
  /** Disposed with the source. */
  readonly file: StateFile
  readonly log: Log
  /** Leaves for another datacenter are rejected. Default: any datacenter. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
}

/** Certificates in use that have not come from the inner source since the start. */
export interface UnconfirmedCertificates {
  /** Leaves, and one more for the roots. */
  readonly count: number
  /** Whether there are any certificates at all, from either origin. */
  readonly isKnown: boolean
  /** Wall clock of when the earlier run wrote them; undefined when there are none. */
  readonly sinceMs: number | undefined
}

/** A leaf with less than this share of its life left, and no renewal, is a problem. */
const RENEWAL_OVERDUE_SHARE = 0.05

/** Never the name of a service: service names have no spaces. */
const ROOTS = 'the roots'

const storedCertificates = z.object({
  source: z.string(),
  trustDomain: z.string(),
  rootsPem: z.array(z.string()).min(1),
  revokedSerials: z.array(z.string()),
  leaves: z.array(
    z.object({ service: z.string(), certificatePem: z.string(), privateKeyPem: z.string() }),
  ),
})

type StoredCertificates = z.output<typeof storedCertificates>

type Origin = Pick<CertificateSource, 'watchLeaf' | 'watchRoots'>

/** A source that uses the certificates of the earlier run until `inner`, which it owns, supplies something. */
export class RememberedCertificates implements CertificateSource {
  readonly description: string
  readonly #inner: CertificateSource
  readonly #file: StateFile
  readonly #stored: StoredCertificates | undefined
  /** The certificates of the file. */
  readonly #earlier: CertificateBoard
  /** Subjects in use from the file; and those that the inner source has supplied. */
  readonly #unconfirmed = new Set<string>()
  readonly #confirmed = new Set<string>()
  /** The services of this run: those of earlier runs are not written again. */
  readonly #leafByService = new Map<string, Leaf | undefined>()
  #bundle: TrustBundle | undefined

  constructor(inner: CertificateSource, options: RememberedCertificatesOptions) {
    const { file, log, datacenter, clock = systemClock } = options
    this.description = inner.description
    this.#inner = inner
    this.#file = file
    this.#earlier = new CertificateBoard({
      log: log.child('remembered'),
      clock,
      datacenter,
      renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
    })
    const stored = recall(file, inner.description)
    this.#stored = stored
    if (stored !== undefined)
      this.#earlier.offerRoots(() => ({
        ...readRoots(stored.rootsPem.join('\n'), stored.trustDomain),
        revokedSerials: stored.revokedSerials,
      }))
  }

  watchLeaf(service: string, onLeaf: (leaf: Leaf) => void): Disposable {
    if (!this.#leafByService.has(service)) this.#leafByService.set(service, undefined)
    const known = this.#stored?.leaves.find((leaf) => leaf.service === service)
    if (known !== undefined && !this.#confirmed.has(service))
      this.#earlier.offerLeaf(service, () => known)
    return this.#follow<Leaf>(
      service,
      (origin, take) => origin.watchLeaf(service, take),
      (leaf) => {
        this.#leafByService.set(service, leaf)
        onLeaf(leaf)
      },
    )
  }

  watchRoots(onRoots: (bundle: TrustBundle) => void): Disposable {
    return this.#follow<TrustBundle>(
      ROOTS,
      (origin, take) => origin.watchRoots(take),
      (roots) => {
        this.#bundle = roots
        onRoots(roots)
      },
    )
  }

  problems(): readonly Problem[] {
    const isPending = [ROOTS, ...this.#leafByService.keys()].some(
      (subject) => !this.#confirmed.has(subject),
    )
    return [...this.#inner.problems(), ...(isPending ? this.#earlier.problems() : [])]
  }

  /** How many of the certificates in use are only remembered. */
  remembered(): UnconfirmedCertificates {
    const count = this.#unconfirmed.size
    return {
      count,
      isKnown: count + this.#confirmed.size > 0,
      sinceMs: count === 0 ? undefined : this.#file.stored?.writtenAtMs,
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#earlier[Symbol.dispose]()
    await this.#inner[Symbol.asyncDispose]()
    await this.#file[Symbol.asyncDispose]()
  }

  /** Follows the stored value until the inner source has supplied `subject`, and the inner source from then on. */
  #follow<Value>(
    subject: string,
    open: (origin: Origin, take: (value: Value) => void) => Disposable,
    onValue: (value: Value) => void,
  ): Disposable {
    const memory = open(this.#earlier, (value) => {
      if (this.#confirmed.has(subject)) return
      this.#unconfirmed.add(subject)
      onValue(value)
    })
    const current = open(this.#inner, (value) => {
      this.#confirmed.add(subject)
      this.#unconfirmed.delete(subject)
      // Problems of the stored value no longer matter.
      this.#earlier.forget(subject)
      onValue(value)
      this.#save()
    })
    return {
      [Symbol.dispose]() {
        memory[Symbol.dispose]()
        current[Symbol.dispose]()
      },
    }
  }

  #save(): void {
    const bundle = this.#bundle
    if (bundle === undefined) return
    const content: StoredCertificates = {
      source: this.description,
      trustDomain: bundle.trustDomain,
      rootsPem: [...bundle.rootsPem],
      revokedSerials: [...bundle.revokedSerials],
      leaves: [...this.#leafByService.values()].flatMap((leaf) =>
        leaf === undefined
          ? []
          : {
              service: leaf.service,
              certificatePem: leaf.certificatePem,
              privateKeyPem: leaf.privateKeyPem,
            },
      ),
    }
    this.#file.save(() => JSON.stringify(content))
  }
}

/** The content of the file, if it is from the same source. The parser's message is left out: it may quote a key. */
function recall(file: StateFile, source: string): StoredCertificates | undefined {
  if (file.stored === undefined) return undefined
  const parsed = storedCertificates.safeParse(file.stored.body)
  if (!parsed.success) {
    file.reject('its body does not have the shape of certificates')
    return undefined
  }
  return parsed.data.source === source ? parsed.data : undefined
}
