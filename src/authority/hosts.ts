/**
 * The hosts of the mesh, the certificates they have, and which of those are revoked.
 *
 * A host may present the certificates of its own that are *accepted*: the newest, and those before it whose successor
 * may have been lost on the way. They stay so after their end, within which they can be renewed.
 */
import type { X509Certificate } from 'node:crypto'
import { MeshError } from '../lib/errors.ts'
import type { CaDatabase, Run } from './database.ts'

/** One host. */
export interface Host {
  readonly name: string
  readonly datacenter: string
  /** What its token lets it ask for, joined by spaces; the catalog may allow more. */
  readonly services: string
}

/** A host that has proved itself. */
export interface HostCaller {
  readonly name: string
  readonly certificate: X509Certificate
}

/** What is revoked; at least one is given. */
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
/** Certificates of its own that a host may present. */
const ACCEPTED_CERTIFICATES = 4
/** Revocations are listed for so long after the end: by the clock of a host it may not have come yet. */
const KEPT_REVOKED_MS = 86_400_000
/** And the last so many in any case: our own clock may be the one that runs ahead, and what is forgotten is forgotten. */
const KEPT_REVOKED = 1_000

const NOT_REVOKED =
  'NOT EXISTS (SELECT 1 FROM revocation WHERE revocation.serial = certificate.serial)'

/** Names that a column holds, joined by spaces. */
export function splitNames(joined: string): readonly string[] {
  return joined.split(' ').filter((name) => name !== '')
}

/** The host of a caller; undefined when its certificate is not one that it may present. */
export function findHost(database: CaDatabase, caller: HostCaller): Host | undefined {
  return database.row<Host>(
    `SELECT name, datacenter, services FROM host JOIN certificate ON certificate.host = name
      WHERE name = ? AND serial = ? AND accepted AND ${NOT_REVOKED}`,
    caller.name,
    caller.certificate.serialNumber,
  )
}

/** @throws MeshError HM_CA_RATE_LIMITED when a host has as many certificates as one may have */
export function requireRoom(database: CaDatabase, host: string, nowMs: number): void {
  // Those that an operator has revoked do not count: a host that was taken over can be set up again.
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

/** @throws MeshError HM_CA_BUSY when there are as many other hosts as there may be */
export function requireRoomForHost(database: CaDatabase, name: string): void {
  if (database.count('SELECT count(*) FROM host WHERE name <> ?', name) >= MAX_HOSTS)
    throw new MeshError('HM_CA_BUSY', `The CA has ${MAX_HOSTS} hosts, which is its limit`)
}

/** Adds a host, or puts it in the place of one of that name: whoever has a certificate of its former life is nobody now. */
export function putHost(run: Run, { name, datacenter, services }: Host): void {
  run('UPDATE certificate SET accepted = 0 WHERE host = ?', name)
  run('INSERT OR REPLACE INTO host VALUES (NULL, ?, ?, ?)', name, datacenter, services)
}

/** Records a certificate; one of a host itself takes the place of the oldest that is accepted. */
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
 * Revokes certificates that have not expired. A host that is revoked as a whole is no host any more.
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
    // One that is only listed could be renewed when the list has dropped it.
    run(`UPDATE certificate SET accepted = 0 WHERE ${isMeant}`, ...meant)
    // Nor may whoever has the key and the token of back then ask for it once more.
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

/** Forgets tokens, certificates and revocations whose time is over; says whether there were such revocations. */
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

/** Takes a service off what a host may ask for. */
const REMOVE_SERVICE = `UPDATE host SET
  services = trim(replace(' ' || services || ' ', ' ' || ? || ' ', ' ')) WHERE name = ?`

/** Says whether it was a host. */
function removeHost(run: Run, name: string): boolean {
  run('DELETE FROM token WHERE host = ?', name)
  run('UPDATE certificate SET accepted = 0 WHERE host = ?', name)
  return run('DELETE FROM host WHERE name = ?', name) > 0
}
