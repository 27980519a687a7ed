/**
 * A certificate source that has at once what it had before the daemon was restarted.
 *
 * Stands before a source whose origin may be away. What the earlier run kept is judged as a fresh answer is
 * (a leaf that has expired or does not fit its roots is never given), and counts until the inner source has
 * something. The file holds private keys: 0600, never logged, never in the admin API.
 */
import { z } from 'zod'
import { type Clock, systemClock } from '../../lib/clock.ts'
import type { Log } from '../../lib/log.ts'
import type { StateFile } from '../../lib/state-file.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource } from './certificate-source.ts'
import { readRoots } from './x509.ts'

/** Version of what is remembered: raised with every change of its shape. */
export const CERTIFICATE_STATE_VERSION = 1

/** Longest body of the file, bytes: a thousand services with a key and two certificates each. */
export const MAX_CERTIFICATE_STATE_BYTES = 16 * 1024 * 1024

/** What a memory is built from. */
export interface RememberedCertificatesOptions {
  /** Disposed with the source. */
  readonly file: StateFile
  readonly log: Log
  /** Leaves for another datacenter are refused; any will do unless given. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
}

/** A source, and how much of what it gave is only remembered. */
export interface RememberedCertificates extends CertificateSource {
  remembered(): UnconfirmedCertificates
}

/** What is in use and has not come from the inner source since the start. */
export interface UnconfirmedCertificates {
  /** Leaves, and one more for the roots. */
  readonly count: number
  /** Whether there are any certificates at all, from wherever. */
  readonly isKnown: boolean
  /** Wall clock of when the earlier run wrote them down; undefined when there are none. */
  readonly sinceMs: number | undefined
}

/** Below this share of its life a leaf that nothing renews is a problem. */
const RENEWAL_OVERDUE_SHARE = 0.05

/** Never the name of a service: those have no spaces. */
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

/** Puts a memory before `inner`, which is disposed with it. */
export function rememberCertificates(
  inner: CertificateSource,
  options: RememberedCertificatesOptions,
): RememberedCertificates {
  const { file, log, datacenter, clock = systemClock } = options
  const earlier = new CertificateBoard({
    log: log.child('remembered'),
    clock,
    datacenter,
    renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
  })
  const stored = recall(file, inner.description)
  if (stored !== undefined)
    earlier.offerRoots(() => ({
      ...readRoots(stored.rootsPem.join('\n'), stored.trustDomain),
      revokedSerials: stored.revokedSerials,
    }))
  /** In use from memory; and those for which the inner source has spoken. */
  const unconfirmed = new Set<string>()
  const confirmed = new Set<string>()
  /** The services of this run: what others left behind is not written again. */
  const leafByService = new Map<string, Leaf | undefined>()
  let bundle: TrustBundle | undefined

  function save(): void {
    if (bundle === undefined) return
    const content: StoredCertificates = {
      source: inner.description,
      trustDomain: bundle.trustDomain,
      rootsPem: [...bundle.rootsPem],
      revokedSerials: [...bundle.revokedSerials],
      leaves: [...leafByService.values()].flatMap((leaf) =>
        leaf === undefined
          ? []
          : {
              service: leaf.service,
              certificatePem: leaf.certificatePem,
              privateKeyPem: leaf.privateKeyPem,
            },
      ),
    }
    file.save(() => JSON.stringify(content))
  }

  /** Follows memory until the inner source has spoken for `subject`, and the inner source from then on. */
  function follow<Value>(
    subject: string,
    open: (origin: Origin, take: (value: Value) => void) => Disposable,
    onValue: (value: Value) => void,
  ): Disposable {
    const memory = open(earlier, (value) => {
      if (confirmed.has(subject)) return
      unconfirmed.add(subject)
      onValue(value)
    })
    const current = open(inner, (value) => {
      confirmed.add(subject)
      unconfirmed.delete(subject)
      // Nothing wrong with what was remembered matters any more.
      earlier.forget(subject)
      onValue(value)
      save()
    })
    return {
      [Symbol.dispose]() {
        memory[Symbol.dispose]()
        current[Symbol.dispose]()
      },
    }
  }

  return {
    description: inner.description,
    watchLeaf(service, onLeaf) {
      if (!leafByService.has(service)) leafByService.set(service, undefined)
      const known = stored?.leaves.find((leaf) => leaf.service === service)
      if (known !== undefined && !confirmed.has(service)) earlier.offerLeaf(service, () => known)
      return follow<Leaf>(
        service,
        (origin, take) => origin.watchLeaf(service, take),
        (leaf) => {
          leafByService.set(service, leaf)
          onLeaf(leaf)
        },
      )
    },
    watchRoots: (onRoots) =>
      follow<TrustBundle>(
        ROOTS,
        (origin, take) => origin.watchRoots(take),
        (roots) => {
          bundle = roots
          onRoots(roots)
        },
      ),
    problems() {
      const isPending = [ROOTS, ...leafByService.keys()].some((subject) => !confirmed.has(subject))
      return [...inner.problems(), ...(isPending ? earlier.problems() : [])]
    },
    remembered: () => ({
      count: unconfirmed.size,
      isKnown: unconfirmed.size + confirmed.size > 0,
      sinceMs: unconfirmed.size === 0 ? undefined : file.stored?.writtenAtMs,
    }),
    async [Symbol.asyncDispose]() {
      earlier[Symbol.dispose]()
      await inner[Symbol.asyncDispose]()
      await file[Symbol.asyncDispose]()
    },
  }
}

/** What the file holds, if it is of the same source. The text of a failure is left out: it may quote a key. */
function recall(file: StateFile, source: string): StoredCertificates | undefined {
  if (file.stored === undefined) return undefined
  const parsed = storedCertificates.safeParse(file.stored.body)
  if (!parsed.success) {
    file.reject('its body does not have the shape of certificates')
    return undefined
  }
  return parsed.data.source === source ? parsed.data : undefined
}
