/**
 * The right to build hosts: root, or root of a user namespace, and what can be shown with it.
 *
 * ```
 *   root ------------------------------------------> services are users
 *   user, subordinate ids and newuidmap -> unshare -> services are users
 *   user, a cgroup that is his -----------> unshare -> services are cgroups
 *   user ---------------------------------> unshare -> no capture, explicit upstream ports
 * ```
 */
import { spawn, spawnSync } from 'node:child_process'
import { accessSync, constants, existsSync, readFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { join } from 'node:path'

/** How services of one host are told apart. */
export interface Means {
  readonly identity: 'user' | 'cgroup' | 'upstream'
  /** For `cgroup`: where cgroups may be made, below the cgroup v2 root. */
  readonly cgroupParent?: string
  /** A sentence to show when something cannot be done here, and what it would take. */
  readonly limitation?: string
}

/** Why the demo cannot run here, with what to do. */
export class PrivilegeError extends Error {
  override readonly name = 'PrivilegeError'
}

const INSIDE = 'HOSTMESH_DEMO_MEANS'

/**
 * Says what this process may do. As an ordinary user it runs the demo again inside a user namespace
 * instead, and returns that run's exit code.
 * @throws PrivilegeError naming the setting or package that is missing.
 */
export async function obtainPrivilege(
  args: readonly string[],
): Promise<Means | { readonly exitCode: number }> {
  const inside = process.env[INSIDE]
  if (inside !== undefined) return JSON.parse(inside) as Means
  if (process.getuid?.() === 0) {
    const trial = spawnSync('unshare', ['--net', 'true'], { encoding: 'utf8' })
    if (trial.status === 0) return { identity: 'user' }
    throw new PrivilegeError(
      `Cannot make a network namespace as root: ${trial.stderr.trim()}\n  it takes CAP_SYS_ADMIN and CAP_NET_ADMIN: in a container, start it with --privileged`,
    )
  }
  const trial = spawnSync('unshare', ['--user', '--map-root-user', '--net', '--mount', 'true'], {
    encoding: 'utf8',
  })
  if (trial.status !== 0) throw new PrivilegeError(whyNoNamespace(trial.stderr))
  return runInside(findMeans(), args)
}

function runInside(means: Means, args: readonly string[]): Promise<{ readonly exitCode: number }> {
  const maps = means.identity === 'user' ? ['--map-auto'] : []
  // `ip netns` keeps its namespaces in /run/netns, which is not ours: a /run of our own is.
  const prepare = 'mount -t tmpfs tmpfs /run && mkdir /run/netns && exec "$@"'
  const child = spawn(
    'unshare',
    [
      ...['--user', '--map-root-user', ...maps, '--net', '--mount', '--'],
      ...['sh', '-c', prepare, 'sh', process.execPath, ...process.execArgv],
      ...[join(import.meta.dirname, '../demo.ts'), ...args],
    ],
    {
      stdio: 'inherit',
      env: {
        ...process.env,
        [INSIDE]: JSON.stringify(means),
        HOSTMESH_DEMO_USER: `${process.getuid?.()}:${process.getgid?.()}`,
      },
    },
  )
  // The terminal sends Ctrl-C to both; the inner one cleans up and its exit code counts.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.on(signal, () => child.kill(signal))
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code) => resolve({ exitCode: code ?? 1 }))
  })
}

function findMeans(): Means {
  const trial = spawnSync('unshare', ['--user', '--map-root-user', '--map-auto', 'true'])
  if (trial.status === 0) return { identity: 'user' }
  const cgroupParent = ownCgroup()
  if (cgroupParent !== undefined) return { identity: 'cgroup', cgroupParent }
  return {
    identity: 'upstream',
    limitation: `Capture is not shown: ${whyNoUsers()}, and user ${userInfo().username} has no cgroup of its own (systemd-run --user --scope -p Delegate=yes gives one). Services use explicit upstream ports instead`,
  }
}

function whyNoUsers(): string {
  const { username } = userInfo()
  const entry = new RegExp(`^(${username}|${process.getuid?.()}):`, 'm')
  const [users, groups] = ['/etc/subuid', '/etc/subgid'].map(
    (path) => existsSync(path) && entry.test(readFileSync(path, 'utf8')),
  )
  const lacking = [
    isOnPath('newuidmap') ? '' : 'the package uidmap is not installed',
    users === true && groups === true
      ? ''
      : `${username} has no subordinate ids (usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ${username})`,
  ].filter(Boolean)
  return lacking.length > 0 ? lacking.join(' and ') : 'subordinate ids cannot be mapped here'
}

function isOnPath(command: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, command)))
}

/** Our own cgroup below the v2 root, when we may make others in it and move processes there. */
function ownCgroup(): string | undefined {
  const mount = readFileSync('/proc/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .find(([, , kind]) => kind === 'cgroup2')?.[1]
  const path = /^0::\/(.*)$/m.exec(readFileSync('/proc/self/cgroup', 'utf8'))?.[1]
  if (mount === undefined || path === undefined || path === '') return undefined
  try {
    accessSync(join(mount, path), constants.W_OK)
    accessSync(join(mount, path, 'cgroup.procs'), constants.W_OK)
    return path
  } catch {
    return undefined
  }
}

function whyNoNamespace(said: string): string {
  const settings: readonly (readonly [path: string, bad: string, mend: string])[] = [
    ['kernel/unprivileged_userns_clone', '0', 'sysctl kernel.unprivileged_userns_clone=1'],
    ['user/max_user_namespaces', '0', 'sysctl user.max_user_namespaces=15000'],
    [
      'kernel/apparmor_restrict_unprivileged_userns',
      '1',
      'sysctl kernel.apparmor_restrict_unprivileged_userns=0',
    ],
  ]
  const mends = settings
    .filter(([path, bad]) => {
      const file = `/proc/sys/${path}`
      return existsSync(file) && readFileSync(file, 'utf8').trim() === bad
    })
    .map(([, , mend]) => mend)
  const what =
    mends.length > 0
      ? `as root, run: ${mends.join(' && ')}`
      : 'user namespaces may be forbidden by a container or a security module'
  return `Cannot make a user namespace (${said.trim()})\n  ${what}; or run the demo as root`
}
