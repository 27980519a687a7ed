/**
 * Which programs the demo needs, and the Debian packages they come in.
 */
import { accessSync, constants, globSync } from 'node:fs'
import { join } from 'node:path'

/** A program that is not there. */
export interface MissingProgram {
  readonly command: string
  readonly package: string
}

const needed: readonly (readonly [command: string, debianPackage: string])[] = [
  ['ip', 'iproute2'],
  ['iptables-restore', 'iptables'],
  ['ip6tables-restore', 'iptables'],
  ['ipset', 'ipset'],
  ['nsenter', 'util-linux'],
  ['unshare', 'util-linux'],
  ['setpriv', 'util-linux'],
  ['tcpdump', 'tcpdump'],
  ['curl', 'curl'],
  ['nginx', 'nginx'],
  ['redis-server', 'redis-server'],
  ['redis-cli', 'redis-tools'],
  ['psql', 'postgresql-client'],
]

/** Folders that an ordinary user's PATH often lacks. */
const administrationFolders = ['/usr/local/sbin', '/usr/sbin', '/sbin']

/** What the demo needs and this machine lacks. Widens the PATH of this process on the way. */
export function findMissing(withConsul: boolean): readonly MissingProgram[] {
  const path = (process.env['PATH'] ?? '').split(':')
  const folders = [...path, ...administrationFolders.filter((folder) => !path.includes(folder))]
  process.env['PATH'] = folders.join(':')
  const all = withConsul ? [...needed, ['consul', 'consul'] as const] : needed
  const missing = all
    .filter(([command]) => !folders.some((folder) => isExecutable(join(folder, command))))
    .map(([command, debianPackage]) => ({ command, package: debianPackage }))
  return postgresFolder() === undefined
    ? [...missing, { command: 'postgres', package: 'postgresql' }]
    : missing
}

/** Where Debian keeps initdb and postgres, newest version; undefined when there is none. */
export function postgresFolder(): string | undefined {
  return globSync('/usr/lib/postgresql/*/bin')
    .toSorted((one, other) => other.localeCompare(one, 'en', { numeric: true }))
    .find((folder) => isExecutable(join(folder, 'initdb')))
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
