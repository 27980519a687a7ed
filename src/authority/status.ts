/**
 * What an operator sees of a CA: hosts, tokens and roots at a glance, and how far a rotation is. No secret, no key.
 *
 * No host is ever shown a certificate of a root it does not have: a new root signs only when every host has said that
 * it uses both, and the retiring root goes only when nothing that lives was signed by it.
 */
import type { CaDatabase } from './database.ts'
import { type Host, splitNames } from './hosts.ts'
import type { Roots, RotationPhase } from './roots.ts'

/** How far one host is with a rotation. */
export interface HostProgress {
  readonly host: string
  /** It has said that it uses the roots of now. */
  readonly hasRoots: boolean
  /** Which root its own certificate is from. */
  readonly hostRoot: string
  /** Its services whose newest certificate is from the root that signs now, and the others. */
  readonly reissued: readonly string[]
  readonly pending: readonly string[]
}

/** How a rotation stands. */
export interface RotationStatus {
  readonly phase: RotationPhase
  readonly activeRoot: string
  readonly retiringRoot: string | null
  readonly startedAtMs: number | null
  readonly hosts: readonly HostProgress[]
  /** Hosts that the next step has to wait for. */
  readonly lagging: readonly string[]
}

/** The CA at a glance. */
export interface CaStatus {
  readonly trustDomain: string
  readonly address: string | null
  readonly roots: readonly { readonly id: string; readonly notAfterMs: number }[]
  readonly activeRoot: string
  readonly rotation: RotationStatus
  readonly certificates: number
  readonly revoked: number
  readonly openTokens: readonly { readonly host: string; readonly expiresAtMs: number }[]
  readonly hosts: readonly {
    readonly name: string
    readonly datacenter: string
    readonly services: readonly string[]
    readonly certificates: number
    readonly notAfterMs: number
  }[]
  /** Since this CA was opened. */
  readonly failedEnrollments: number
}

/** What a status is taken of, at a moment. */
export interface StatusInput {
  readonly database: CaDatabase
  readonly roots: Roots
  readonly nowMs: number
  /** So long after its end a host certificate may still be renewed. */
  readonly graceMs: number
  /** Whether a host has said that it uses the roots of now. */
  readonly hasRoots: (host: string) => boolean
}

/** Every host with the end and the root of its newest certificate of its own; 0 and '' where it has none. */
const HOSTS = `
  SELECT name, datacenter, services, ifnull(notAfterMs, 0) AS notAfterMs, ifnull(rootId, '') AS rootId
  FROM host LEFT JOIN certificate ON certificate.seq =
    (SELECT max(seq) FROM certificate WHERE certificate.host = host.name AND accepted)
  ORDER BY host.seq`

interface HostRow extends Host {
  readonly notAfterMs: number
  readonly rootId: string
}

/** Whether every host that is waited for has the roots of now. */
export function areRootsSpread(input: StatusInput): boolean {
  return waitedFor(input).every(({ name }) => input.hasRoots(name))
}

/** Hosts whose own certificate could still be renewed. The others need a new token anyhow. */
function waitedFor({ database, nowMs, graceMs }: StatusInput): IteratorObject<HostRow> {
  return database.iterate<HostRow>(HOSTS).filter(({ notAfterMs }) => notAfterMs + graceMs > nowMs)
}

/** How the rotation stands. */
export function readRotationStatus(input: StatusInput): RotationStatus {
  const { database, roots, nowMs } = input
  const activeRoot = roots.active.id
  const newest = database.rows<{ host: string; service: string; rootId: string }>(
    `SELECT host, service, rootId, max(seq) FROM certificate
      WHERE service IS NOT NULL AND notAfterMs > ? GROUP BY host, service ORDER BY service`,
    nowMs,
  )
  const newestByHost = Map.groupBy(newest, ({ host }) => host)
  const progressOf = ({ name, rootId }: HostRow): HostProgress => {
    const certificates = newestByHost.get(name) ?? []
    const isReissued = (one: { readonly rootId: string }): boolean => one.rootId === activeRoot
    return {
      host: name,
      hasRoots: input.hasRoots(name),
      hostRoot: rootId,
      reissued: certificates.filter(isReissued).map(({ service }) => service),
      pending: certificates.filter((one) => !isReissued(one)).map(({ service }) => service),
    }
  }
  const hosts = waitedFor(input).map(progressOf).toArray()
  const { phase } = roots
  const isLagging = ({ hasRoots, hostRoot, pending }: HostProgress): boolean =>
    !hasRoots || (phase === 'reissuing' && (pending.length > 0 || hostRoot !== activeRoot))
  return {
    phase,
    activeRoot,
    retiringRoot: roots.retiring?.id ?? null,
    startedAtMs: phase === 'none' ? null : (roots.all.at(-1)?.addedAtMs ?? null),
    hosts,
    lagging: phase === 'none' ? [] : hosts.filter(isLagging).map(({ host }) => host),
  }
}

/** The CA at a glance. */
export function readCaStatus(input: StatusInput, failedEnrollments: number): CaStatus {
  const { database, roots, nowMs } = input
  const counts = database.rows<{ host: string; certificates: number }>(
    'SELECT host, count(*) AS certificates FROM certificate WHERE notAfterMs > ? GROUP BY host',
    nowMs,
  )
  const countByHost = new Map(counts.map(({ host, certificates }) => [host, certificates]))
  return {
    trustDomain: roots.active.trustDomain,
    address: readAddress(database) ?? null,
    roots: roots.all.map(({ id, certificate }) => ({
      id,
      notAfterMs: certificate.validToDate.getTime(),
    })),
    activeRoot: roots.active.id,
    rotation: readRotationStatus(input),
    certificates: counts.reduce((sum, { certificates }) => sum + certificates, 0),
    revoked: database.count('SELECT count(*) FROM revocation WHERE notAfterMs > ?', nowMs),
    openTokens: database.rows(
      `SELECT host, expiresAtMs FROM token WHERE usedByKey IS NULL AND expiresAtMs > ?
        ORDER BY rowid`,
      nowMs,
    ),
    hosts: database.rows<HostRow>(HOSTS).map(({ name, datacenter, services, notAfterMs }) => ({
      name,
      datacenter,
      services: splitNames(services),
      certificates: countByHost.get(name) ?? 0,
      notAfterMs,
    })),
    failedEnrollments,
  }
}

/** Where hosts reach the server; undefined until one was started. */
export function readAddress(database: CaDatabase): string | undefined {
  return database.row<{ address: string }>('SELECT address FROM server')?.address
}
