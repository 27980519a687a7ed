/**
 * The right to build hosts: root, or a user namespace in which we have the same rights, and what can be
 * shown with it.
 *
 * ```
 *   root ------------------------------------------> services are users, capture
 *   user, subordinate ids and newuidmap -> unshare -> services are users, capture
 *   user ---------------------------------> unshare -> one user only: explicit upstream ports
 * ```
 */
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { userInfo } from 'node:os'
import { join } from 'node:path'
import type { Window } from './window.ts'

/** How services of one host are told apart. */
export interface Means {
  readonly identity: 'user' | 'upstream'
  /** A sentence to show when something cannot be done here, and what it would take. */
  readonly limitation?: string
  /** Where the dashboard is to be seen, when it was asked for. */
  readonly window?: Window
}

/** Why the demo cannot run here, with what to do. */
export class PrivilegeError extends Error {
  override readonly name = 'PrivilegeError'
}

const INSIDE = 'HOSTMESH_DEMO_MEANS'

/**
 * Says what this process may do. As an ordinary user it runs the demo again inside a user namespace
 * instead, and returns that run's exit code. `openWindow` is called once, in the network of the user.
 * @throws PrivilegeError naming the setting or package that is missing.
 */
export async function obtainPrivilege(
  args: readonly string[],
  openWindow: () => Promise<Window | undefined>,
): Promise<Means | { readonly exitCode: number }> {
  const inside = process.env[INSIDE]
  if (inside !== undefined) return JSON.parse(inside) as Means
  if (process.getuid?.() === 0) {
    const trial = spawnSync('unshare', ['--net', 'true'], { encoding: 'utf8' })
    if (trial.status === 0) return withWindow({ identity: 'user' }, await openWindow())
    throw new PrivilegeError(
      `Cannot make a network namespace as root: ${trial.stderr.trim()}\n  it takes CAP_SYS_ADMIN and CAP_NET_ADMIN: in a container, start it with --privileged`,
    )
  }
  const trial = spawnSync('unshare', ['--user', '--map-root-user', '--net', '--mount', 'true'], {
    encoding: 'utf8',
  })
  if (trial.status !== 0) throw new PrivilegeError(whyNoNamespace(trial.stderr))
  return runInside(withWindow(findMeans(), await openWindow()), args)
}

function withWindow(means: Means, window: Window | undefined): Means {
  return window === undefined ? means : { ...means, window }
}

function runInside(means: Means, args: readonly string[]): Promise<{ readonly exitCode: number }> {
  // With one user only, he stays who he is: as root, PostgreSQL and tcpdump would want to be another.
  const maps =
    means.identity === 'user'
      ? ['--map-root-user', '--map-auto']
      : ['--map-current-user', '--keep-caps']
  // `ip netns` keeps its namespaces in /run/netns, which is not ours: a /run of our own is.
  const prepare = 'mount -t tmpfs tmpfs /run && mkdir /run/netns && exec "$@"'
  const child = spawn(
    'unshare',
    [
      '--user',
      ...maps,
      '--net',
      '--mount',
      '--',
      'sh',
      '-c',
      prepare,
      'sh',
      process.execPath,
      ...process.execArgv,
      join(import.meta.dirname, '../demo.ts'),
      ...args,
    ],
    {
      stdio: 'inherit',
      env: { ...process.env, [INSIDE]: JSON.stringify(means) },
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
  return {
    identity: 'upstream',
    limitation: `Capture cannot be shown to this user: ${whyNoUsers()}.\nServices use explicit upstream ports instead`,
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
