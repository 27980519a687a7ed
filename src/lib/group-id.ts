/**
 * The number of a Unix group.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { MeshError } from './errors.ts'

/**
 * The number of a group, by name or number, from any database of this machine.
 * @throws MeshError HM_ADMIN_GROUP_UNKNOWN
 */
export async function groupId(group: string): Promise<number> {
  if (/^\d{1,9}$/.test(group)) return Number(group)
  try {
    // Node has no getgrnam; getent asks the same sources, LDAP included.
    const { stdout } = await promisify(execFile)('getent', ['group', '--', group], {
      timeout: 5_000,
      maxBuffer: 1_048_576,
    })
    const gid = Number(stdout.split(':')[2])
    if (Number.isInteger(gid) && stdout.startsWith(`${group}:`)) return gid
    throw new Error(`getent answered ${JSON.stringify(stdout.slice(0, 100))}`)
  } catch (error) {
    throw new MeshError(
      'HM_ADMIN_GROUP_UNKNOWN',
      `Cannot give the socket to group ${group}: no such group`,
      {
        cause: error,
        hint: `Make it with groupadd --system ${group}, or leave it out of the configuration`,
      },
    )
  }
}
