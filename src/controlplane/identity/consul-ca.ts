/**
 * Certificates from the Connect CA of the local Consul agent. The agent makes the keys, has them signed and renews
 * them; this source only follows.
 *
 * Leaf and roots are separate answers that may arrive in either order, also in a rotation: the board holds a leaf until
 * its root is known. An invalid answer is reported in `problems()` and changes nothing.
 */
import { z } from 'zod'
import { type Clock, systemClock } from '../../lib/clock.ts'
import { MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { CertificateBoard } from './certificate-board.ts'
import type { CertificateSource } from './certificate-source.ts'
import { readRoots } from './x509.ts'

/** What this source needs from Consul: blocking queries; connection and token are handled elsewhere. */
export interface ConsulFollower {
  /**
   * Calls `onAnswer` with each changed body of `path`, parsed; with undefined for "not found"; never with an
   * error, and never inside follow().
   */
  follow(path: string, onAnswer: (body: unknown) => void): Disposable
}

/** What the source is built from. */
export interface ConsulSourceOptions {
  readonly follower: ConsulFollower
  readonly log: Log
  /** Leaves for another datacenter are rejected. Default: any datacenter. */
  readonly datacenter?: string | undefined
  readonly clock?: Clock
}

const ROOTS_PATH = '/v1/agent/connect/ca/roots'
const LEAF_PATH = '/v1/agent/connect/ca/leaf/'

/** The agent renews at 60 to 90 % of a leaf's life. */
const RENEWAL_OVERDUE_SHARE = 0.05

const MAX_ROOTS = 32

const rootsAnswer = z.object({
  TrustDomain: z.string(),
  Roots: z
    .array(z.object({ RootCert: z.string() }))
    .min(1)
    .max(MAX_ROOTS),
})

const leafAnswer = z.object({ CertPEM: z.string(), PrivateKeyPEM: z.string() })

/** Follows the agent's roots from now on, and the leaf of each service while it is watched. */
export function createConsulSource(options: ConsulSourceOptions): CertificateSource {
  const { follower, log, datacenter, clock = systemClock } = options
  const board = new CertificateBoard({
    log,
    clock,
    datacenter,
    renewalOverdueShare: RENEWAL_OVERDUE_SHARE,
  })

  const rootsQuery = follower.follow(ROOTS_PATH, (body) =>
    board.offerRoots(() => {
      const answer = parse(rootsAnswer, body, 'its roots')
      // Only RootCert is trusted: Consul's roots and cross-signed intermediates have different uses.
      return readRoots(answer.Roots.map((root) => root.RootCert).join('\n'), answer.TrustDomain)
    }),
  )

  function followLeaf(service: string): Disposable {
    return follower.follow(`${LEAF_PATH}${encodeURIComponent(service)}`, (body) =>
      board.offerLeaf(service, () => {
        const answer = parse(leafAnswer, body, `the certificate of ${service}`)
        return { service, certificatePem: answer.CertPEM, privateKeyPem: answer.PrivateKeyPEM }
      }),
    )
  }

  return {
    description: 'Consul Connect CA',
    watchLeaf: (service, onLeaf) => board.watchLeaf(service, onLeaf, () => followLeaf(service)),
    watchRoots: (onRoots) => board.watchRoots(onRoots),
    problems: () => board.problems(),
    async [Symbol.asyncDispose]() {
      rootsQuery[Symbol.dispose]()
      board[Symbol.dispose]()
    },
  }
}

/** zod's issues name keys and types, never values: an answer with a key in it must not reach a log. */
function parse<Output>(schema: z.ZodType<Output>, body: unknown, what: string): Output {
  const result = schema.safeParse(body)
  if (result.success) return result.data
  const reason =
    body === undefined
      ? 'Consul does not know it'
      : result.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join('; ')
  throw new MeshError('HM_CERT_ANSWER_MALFORMED', `Cannot read ${what} from Consul: ${reason}`, {
    hint: 'Check that connect is enabled on the Consul servers',
  })
}
