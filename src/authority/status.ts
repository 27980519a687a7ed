/**
 * The status of a CA for its operator: hosts, tokens and roots, and the progress of a rotation. No secret, no key.
 *
 * No host receives a certificate from a root that it does not have: a new root signs only when every host has reported
 * that it uses both, and the retiring root is removed only when the newest certificates of all hosts and services are
 * from the new one. The operator can force the removal.
 */
import type { CaDatabase } from './database.ts'
import { type Host, splitNames } from './hosts.ts'
import type { Roots, RotationPhase } from './roots.ts'

/** The progress of one host in a rotation. */
export interface HostProgress {
  readonly host: string
  /** Whether it has reported that it uses the current roots. */
  readonly hasRoots: boolean
  /** The root of its own certificate. */
  readonly hostRoot: string
  /** Its services whose newest certificate is from the root that signs now; below, the others. */
  readonly reissued: readonly string[]
  readonly pending: readonly string[]
}

/** The state of a rotation. */
export interface RotationStatus {
  readonly phase: RotationPhase
  readonly activeRoot: string
  readonly retiringRoot: string | null
  readonly startedAtMs: number | null
  readonly hosts: readonly HostProgress[]
  /** Hosts that the next step waits for. */
  readonly lagging: readonly string[]
}

/** Summary of the CA. */
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

/** What a status is computed from. */
export interface StatusInput {
  readonly database: CaDatabase
  readonly roots: Roots
  readonly nowMs: number
  /** How long after its expiry a host certificate may still be renewed. */
  readonly graceMs: number
  /** Whether a host has reported that it uses the current roots. */
  readonly hasRoots: (host: string) => boolean
}

/** Every host with the expiry and the root of its newest certificate of its own; 0 and '' if it has none. */
const HOSTS = `
  SELECT name, datacenter, services, ifnull(notAfterMs, 0) AS notAfterMs, ifnull(rootId, '') AS rootId
  FROM host LEFT JOIN certificate ON certificate.seq =
    (SELECT max(seq) FROM certificate WHERE certificate.host = host.name AND accepted)
  ORDER BY host.seq`

interface HostRow extends Host {
  readonly notAfterMs: number
  readonly rootId: string
}

/** Whether every host that is waited for has the current roots. */
export function areRootsSpread(input: StatusInput): boolean {
  return waitedFor(input).every(({ name }) => input.hasRoots(name))
}

/** Hosts whose own certificate could still be renewed. The others need a new token anyway. */
function waitedFor({ database, nowMs, graceMs }: StatusInput): IteratorObject<HostRow> {
  return database.iterate<HostRow>(HOSTS).filter(({ notAfterMs }) => notAfterMs + graceMs > nowMs)
}

/** The state of the rotation. */
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

/** Summary of the CA. */
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
