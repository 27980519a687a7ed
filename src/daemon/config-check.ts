/**
 * Checks a configuration against this machine before a daemon is started: missing files, unknown users, an invalid
 * catalog file. Problems are only warnings: a configuration is often checked before the rest of a host is in place.
 */
import { execFileSync } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import type { Config } from '../config/schema.ts'
import { configWarnings } from '../config/validate.ts'
import { decodeCatalog } from '../controlplane/catalog/file/decode.ts'
import { describeError, errorCode } from '../lib/errors.ts'
import { readTextFile } from '../lib/read-text-file.ts'

/** The maximum size of a catalog file that the daemon reads. */
const MAX_CATALOG_BYTES = 1024 * 1024

/** Warnings about a valid configuration on this host, one sentence each. */
export function hostWarnings(config: Config): readonly string[] {
  return [
    ...configWarnings(config),
    ...namedFiles(config).flatMap(([key, path]) => unreadable(key, path)),
    ...catalogWarnings(config),
    ...namedUsers(config).flatMap(([key, user]) => unknownUser(key, user)),
  ]
}

/** Files and folders by configuration key, without patterns and without files that the daemon creates. */
function namedFiles({ catalog, certificates }: Config): readonly (readonly [string, string])[] {
  const named: Record<string, string | undefined> =
    catalog.kind === 'file'
      ? { 'catalog.path': catalog.path }
      : {
          'catalog.tokenFile': catalog.tokenFile,
          'catalog.caFile': catalog.caFile,
          'catalog.certFile': catalog.certFile,
          'catalog.keyFile': catalog.keyFile,
        }
  if (certificates.kind === 'files') {
    named['certificates.directory'] = certificates.directory
    for (const key of ['certificate', 'key', 'roots'] as const)
      if (certificates[key]?.includes('{') === false)
        named[`certificates.${key}`] = certificates[key]
  }
  return Object.entries(named).flatMap(([key, path]) => (path === undefined ? [] : [[key, path]]))
}

function unreadable(key: string, path: string): string[] {
  try {
    accessSync(path, constants.R_OK)
    return []
  } catch (error) {
    const reason = errorCode(error) === 'ENOENT' ? 'is not there' : 'cannot be read'
    return [`${key}: ${path} ${reason}`]
  }
}

function catalogWarnings({ catalog }: Config): string[] {
  if (catalog.kind !== 'file' || unreadable('', catalog.path).length > 0) return []
  try {
    const { text } = readTextFile(catalog.path, MAX_CATALOG_BYTES)
    const decoded = decodeCatalog(text, catalog.path)
    return 'problems' in decoded ? [...decoded.problems] : []
  } catch (error) {
    return [`catalog.path: ${describeError(error)}`]
  }
}

/** User names by configuration key, without numbers, which need no entry. */
function namedUsers({ services, capture }: Config): readonly (readonly [string, string])[] {
  const identities = services.map(({ identity }, index) => [
    `services[${index}].identity.user`,
    identity !== undefined && 'user' in identity ? String(identity.user) : '',
  ])
  return [...identities, ['capture.daemonUser', String(capture.daemonUser ?? '')]].flatMap(
    ([key = '', user = '']) => (user === '' || /^\d+$/.test(user) ? [] : [[key, user]]),
  )
}

function unknownUser(key: string, user: string): string[] {
  try {
    // Like the daemon's own lookup: in all user databases of this machine, LDAP included.
    execFileSync('getent', ['passwd', '--', user], { timeout: 5_000, stdio: 'ignore' })
    return []
  } catch (error) {
    // Status 2: unknown key. Any other failure does not mean that the user is unknown.
    const isUnknown = error instanceof Error && 'status' in error && error.status === 2
    return isUnknown ? [`${key}: this host has no user ${user}`] : []
  }
}
