/**
 * The hosts of the mesh, the certificates they have, and which of those are revoked.
 *
 * A host may present those of its own certificates that are *accepted*: the newest, and earlier ones whose successor
 * may have been lost in transit. They stay accepted after their expiry, while they can be renewed.
 */
import type { X509Certificate } from 'node:crypto'
import { MeshError } from '../lib/errors.ts'
import type { CaDatabase, Run } from './database.ts'

/** One host. */
export interface Host {
  readonly name: string
  readonly datacenter: string
  /** Services that its token lists, joined by spaces; the catalog may allow more. */
  readonly services: string
}

/** A host whose identity is verified. */
export interface HostCaller {
  readonly name: string
  readonly certificate: X509Certificate
}

/** What to revoke; at least one is given. */
export interface RevokeRequest {
  readonly host?: string | undefined
  readonly service?: string | undefined
  readonly serial?: string | undefined
}

/** A certificate that is being issued; `service` is null for that of the host itself. */
export interface Issue {
  readonly host: string
  readonly service: string | null
  readonly certificate: X509Certificate
  readonly rootId: string
}

const MAX_HOSTS = 8_000
const MAX_CERTIFICATES_PER_HOST = 4_096
/** Most accepted certificates of a host. */
const ACCEPTED_CERTIFICATES = 4
/** How long revocations are listed after the expiry of the certificate: a host's clock may be behind. */
const KEPT_REVOKED_MS = 86_400_000
/** The last ones are listed in any case: our own clock may be ahead, and what was deleted cannot be restored. */
const KEPT_REVOKED = 1_000

const NOT_REVOKED =
  'NOT EXISTS (SELECT 1 FROM revocation WHERE revocation.serial = certificate.serial)'

/** The names in a column, which joins them by spaces. */
export function splitNames(joined: string): readonly string[] {
  return joined.split(' ').filter((name) => name !== '')
}

/** The host of a caller; undefined when it may not present this certificate. */
export function findHost(database: CaDatabase, caller: HostCaller): Host | undefined {
  return database.row<Host>(
    `SELECT name, datacenter, services FROM host JOIN certificate ON certificate.host = name
      WHERE name = ? AND serial = ? AND accepted AND ${NOT_REVOKED}`,
    caller.name,
    caller.certificate.serialNumber,
  )
}

/** @throws MeshError HM_CA_RATE_LIMITED when a host has the largest permitted number of certificates */
export function requireRoom(database: CaDatabase, host: string, nowMs: number): void {
  // Revoked ones do not count: a host that was compromised can be set up again.
  const good = database.count(
    `SELECT count(*) FROM certificate WHERE host = ? AND notAfterMs > ? AND ${NOT_REVOKED}`,
    host,
    nowMs,
  )
  if (good >= MAX_CERTIFICATES_PER_HOST)
    throw new MeshError(
      'HM_CA_RATE_LIMITED',
      `${host} has ${MAX_CERTIFICATES_PER_HOST} certificates that have not expired, which is the limit`,
    )
}

/** @throws MeshError HM_CA_BUSY when there is the largest permitted number of other hosts */
export function requireRoomForHost(database: CaDatabase, name: string): void {
  if (database.count('SELECT count(*) FROM host WHERE name <> ?', name) >= MAX_HOSTS)
    throw new MeshError('HM_CA_BUSY', `The CA has ${MAX_HOSTS} hosts, which is its limit`)
}

/** Adds a host, or replaces one with that name: the certificates of the replaced host are no longer accepted. */
export function putHost(run: Run, { name, datacenter, services }: Host): void {
  run('UPDATE certificate SET accepted = 0 WHERE host = ?', name)
  run('INSERT OR REPLACE INTO host VALUES (NULL, ?, ?, ?)', name, datacenter, services)
}

/** Records a certificate; one of a host itself displaces the oldest accepted one above the limit. */
export function recordIssue(run: Run, issue: Issue, nowMs: number): void {
  const { host, service, certificate, rootId } = issue
  const times = [Math.round(nowMs), certificate.validToDate.getTime()]
  const values = [certificate.serialNumber, host, service, ...times, rootId]
  run('INSERT INTO certificate VALUES (NULL, ?1, ?2, ?3, ?4, ?5, ?6, ?3 IS NULL)', ...values)
  run(
    `UPDATE certificate SET accepted = 0 WHERE host = ?1 AND accepted AND seq NOT IN
      (SELECT seq FROM certificate WHERE host = ?1 AND accepted
        ORDER BY seq DESC LIMIT ${ACCEPTED_CERTIFICATES})`,
    host,
  )
}

/**
 * Revokes certificates that have not expired. A host that is revoked as a whole is removed.
 * @throws MeshError HM_CA_NOTHING_TO_REVOKE
 */
export function revokeCertificates(
  database: CaDatabase,
  request: RevokeRequest,
  nowMs: number,
): { readonly serials: readonly string[]; readonly added: number } {
  const { host, service } = request
  const serial = request.serial?.replaceAll(':', '').toUpperCase()
  const isMeant = `notAfterMs > ?1 AND host = ifnull(?2, host) AND serial = ifnull(?3, serial)
    AND (?4 IS NULL OR service = ?4)`
  const meant = [nowMs, host ?? null, serial ?? null, service ?? null]
  return database.change((run) => {
    const found = database.rows<{ serial: string }>(
      `SELECT serial FROM certificate WHERE ${isMeant} ORDER BY seq`,
      ...meant,
    )
    const added = run(
      `INSERT OR IGNORE INTO revocation (serial, notAfterMs)
        SELECT serial, notAfterMs FROM certificate WHERE ${isMeant} ORDER BY seq`,
      ...meant,
    )
    // Otherwise it could be renewed once its revocation is no longer listed.
    run(`UPDATE certificate SET accepted = 0 WHERE ${isMeant}`, ...meant)
    // Nor may the holder of its key and token request it again.
    run(
      `DELETE FROM token WHERE usedByKey IS NOT NULL AND host IN
        (SELECT host FROM certificate WHERE service IS NULL AND ${isMeant})`,
      ...meant,
    )
    let isHostGone = false
    if (host !== undefined && serial === undefined) {
      if (service === undefined) isHostGone = removeHost(run, host)
      else run(REMOVE_SERVICE, service, host)
    }
    if (found.length === 0 && !isHostGone)
      throw new MeshError(
        'HM_CA_NOTHING_TO_REVOKE',
        'Cannot revoke: no certificate that has not expired is like that',
        { hint: 'hostmesh ca status lists the hosts' },
      )
    return { serials: found.map((one) => one.serial), added }
  })
}

/** Deletes expired tokens, certificates and revocations; returns whether any revocations were deleted. */
export function forgetExpired(database: CaDatabase, nowMs: number): boolean {
  return database.change((run) => {
    run('DELETE FROM token WHERE expiresAtMs <= ?', nowMs)
    run('DELETE FROM certificate WHERE notAfterMs <= ? AND NOT accepted', nowMs)
    const forgotten = run(
      `DELETE FROM revocation WHERE notAfterMs <= ?
        AND seq NOT IN (SELECT seq FROM revocation ORDER BY seq DESC LIMIT ${KEPT_REVOKED})`,
      nowMs - KEPT_REVOKED_MS,
    )
    return forgotten > 0
  })
}

/** Removes a service from those that a host may request. */
const REMOVE_SERVICE = `UPDATE host SET
  services = trim(replace(' ' || services || ' ', ' ' || ? || ' ', ' ')) WHERE name = ?`

/** Returns whether the host existed. */
function removeHost(run: Run, name: string): boolean {
  run('DELETE FROM token WHERE host = ?', name)
  run('UPDATE certificate SET accepted = 0 WHERE host = ?', name)
  return run('DELETE FROM host WHERE name = ?', name) > 0
}
