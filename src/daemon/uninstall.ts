/**
 * Removes hostmesh from this host: unit, capture rules, resolver configuration, keys and state, program, user.
 *
 * Works without a configuration and with an invalid one: the folders that it names are read as far as possible. Whole
 * folders are removed only where nobody but hostmesh writes; elsewhere only the files that it or `hostmesh ca issue` is
 * known to have written, and the folder if it is then empty. What an operator may share is kept and reported.
 */
import { execFile } from 'node:child_process'
import {
  existsSync,
  globSync,
  lstatSync,
  readFileSync,
  realpathSync,
  rmdirSync,
  rmSync,
  statSync,
} from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { parseDocument } from 'yaml'
import { SYSTEM_PATH } from '../controlplane/capture/command.ts'
import { describeError, errorCode } from '../lib/errors.ts'
import { member } from '../lib/json-value.ts'
import { stateNames } from './state-files.ts'
import { unitOf } from './stop-cause.ts'

/** Runs a tool and returns how it ended; replaced where no tool may run. */
export type RunTool = (
  tool: string,
  args: readonly string[],
) => Promise<{ readonly status: number; readonly stdout: string; readonly stderr: string }>

/** Where to remove hostmesh, and with which tools. */
export interface UninstallOptions {
  /** The folder that is used as `/`. */
  readonly root: string
  /** Relative to the root, starting with `/`. */
  readonly configPath: string
  readonly run: RunTool
  /** Removes the rules in the kernel; returns what it removed, empty if there was nothing. */
  readonly clearCapture: () => Promise<readonly string[]>
}

/** What would be done, in this order. Paths are relative to the root and exist. */
export interface UninstallPlan {
  /** Files that configure resolvers for the mesh, with the unit that reads each. */
  readonly resolvers: readonly { readonly path: string; readonly unit: string }[]
  /** hostmesh's own units, by name. */
  readonly units: readonly string[]
  /** Files and folders, those with keys first. */
  readonly paths: readonly string[]
  /** Folders that are removed if they are then empty. */
  readonly folders: readonly string[]
  readonly users: readonly string[]
  /** What is kept, and why. */
  readonly kept: readonly string[]
  /** Files of other units that require one of ours: those units are stopped, or do not start at the next boot. */
  readonly dependents: readonly string[]
}

/** What was done, one line each. */
export interface UninstallReport {
  readonly removed: readonly string[]
  /** What could not be removed; if not empty, something is left. */
  readonly failed: readonly string[]
}

const RESOLVERS = [
  { path: '/etc/systemd/resolved.conf.d/hostmesh.conf', unit: 'systemd-resolved.service' },
  { path: '/etc/dnsmasq.d/hostmesh.conf', unit: 'dnsmasq.service' },
]

const UNIT_FOLDERS = ['/usr/lib/systemd/system', '/lib/systemd/system', '/etc/systemd/system']

/** Where `systemctl edit --runtime` and `systemctl set-property` write. */
const OVERRIDE_FOLDERS = [
  '/etc/systemd/system.control',
  '/run/systemd/system',
  '/run/systemd/system.control',
]

/** A line of a unit file that makes it depend on one of our units beyond the order of start. */
const NEEDS_US =
  /^\s*(?:Requires|Requisite|BindsTo|PartOf|Wants|WantedBy|RequiredBy)\s*=.*\bhostmesh(?:-ready|-guard)?\.(?:service|target)\b/m

/** Only hostmesh writes there. */
const OWN_FOLDERS = ['/var/lib/hostmesh', '/run/hostmesh']

/** Other programs of hostmesh that may run on this machine, by the name of their unit; they stay. */
const NEIGHBORS = [
  { name: 'hostmesh-ca', what: 'the certificate authority' },
  { name: 'hostmesh-aggregator', what: 'the aggregator' },
] as const

/** Removed unless a neighbor, which uses them too, runs on this machine. */
const SHARED_WITH_NEIGHBORS = ['/etc/hostmesh', '/usr/bin/hostmesh', '/opt/hostmesh']

/** The daemon's own files in `/etc/hostmesh`, where a neighbor runs on the same machine. */
const OWN_IN_ETC = ['hostmesh.yaml', 'catalog.yaml', 'consul.token', 'join-token', 'certs']

/** Timeout of a tool: a draining unit stops slowly; a tool that takes longer than this hangs. Milliseconds. */
const TOOL_DEADLINE_MS = 3_900_000

/** Runs a tool of this machine. */
export const runTool: RunTool = (tool, args) =>
  new Promise((resolve, reject) => {
    const options = {
      env: { PATH: SYSTEM_PATH, LC_ALL: 'C' },
      timeout: TOOL_DEADLINE_MS,
    }
    execFile(tool, [...args], options, (error, stdout, stderr) => {
      if (error === null) resolve({ status: 0, stdout, stderr })
      else if (typeof error.code === 'number') resolve({ status: error.code, stdout, stderr })
      else reject(new Error(`Cannot run ${tool}`, { cause: error }))
    })
  })

/** Inspects the host. Changes nothing. */
export function planUninstall(
  options: Pick<UninstallOptions, 'root' | 'configPath'>,
): UninstallPlan {
  const { root } = options
  const isThere = (path: string): boolean => hasEntry(join(root, path))
  const config = readLoosely(join(root, options.configPath))
  const neighbors = NEIGHBORS.filter(({ name }) =>
    UNIT_FOLDERS.some((folder) => isThere(join(folder, `${name}.service`))),
  )
  const folders = distinctFolders(root, [...UNIT_FOLDERS, ...OVERRIDE_FOLDERS])
  const unitFiles = folders.flatMap((folder) =>
    globSync('hostmesh*', { cwd: join(root, folder) })
      .filter((file) => !NEIGHBORS.some(({ name }) => file.startsWith(name)))
      .map((name) => join(folder, name)),
  )
  const named = namedByConfig(config)
  const shared =
    neighbors.length > 0
      ? OWN_IN_ETC.map((name) => join('/etc/hostmesh', name))
      : SHARED_WITH_NEIGHBORS
  const systemFiles = ['sysusers.d', 'tmpfiles.d'].map((folder) =>
    join('/usr/lib', folder, 'hostmesh.conf'),
  )
  const paths = [...named.paths, ...OWN_FOLDERS, ...unitFiles, ...systemFiles, ...shared]
  return {
    resolvers: RESOLVERS.filter(({ path }) => isThere(path)),
    units: [...new Set(unitFiles.map((path) => basename(path)))].filter((name) =>
      /\.(service|socket|target|path|timer)$/.test(name),
    ),
    paths: outermost(paths.flatMap((path) => expanded(root, path))),
    folders: named.folders.filter(isThere),
    users: ['hostmesh'],
    kept: [
      ...named.shared.filter(isThere).map((path) => `${path}: others may use it`),
      ...neighbors.map(
        ({ what }) => `/opt/hostmesh, /usr/bin/hostmesh: ${what} runs on this machine`,
      ),
    ],
    dependents: folders.flatMap((folder) => dependentsIn(root, folder)),
  }
}

/** Whether a process, given the text of its /proc/PID/cgroup, ends when the units of a plan are stopped. */
export function endsWithUnits({ units }: Pick<UninstallPlan, 'units'>, cgroups: string): boolean {
  const unit = unitOf(cgroups)
  return unit !== undefined && units.includes(unit)
}

/** Paths of other programs' unit files and drop-ins in a folder that require one of our units. */
function dependentsIn(root: string, folder: string): string[] {
  return globSync(['*.*', '*.d/*.conf'], { cwd: join(root, folder) })
    .filter((name) => !name.startsWith('hostmesh'))
    .map((name) => join(folder, name))
    .filter((path) => NEEDS_US.test(readIfFile(join(root, path))))
    .toSorted()
}

/** The text of a regular file; empty for anything else and for a dangling link. */
function readIfFile(path: string): string {
  const isFile = statSync(path, { throwIfNoEntry: false })?.isFile() === true
  return isFile ? readFileSync(path, 'utf8') : ''
}

/** The existing folders without duplicates: `/lib` is a link to `/usr/lib` on most machines. */
function distinctFolders(root: string, folders: readonly string[]): readonly string[] {
  const byPlace = new Map<string, string>()
  for (const folder of folders) {
    const path = join(root, folder)
    if (!existsSync(path)) continue
    const place = realpathSync(path)
    if (!byPlace.has(place)) byPlace.set(place, folder)
  }
  return [...byPlace.values()]
}

/** Carries out a plan. Failures are reported and the rest continues: half an uninstall is worse than most of one. */
export async function uninstall(
  plan: UninstallPlan,
  options: UninstallOptions,
): Promise<UninstallReport> {
  const { root, run } = options
  const removed: string[] = []
  const failed: string[] = []
  const attempt = async (what: string, work: () => Promise<void> | void): Promise<void> => {
    try {
      await work()
    } catch (error) {
      failed.push(`${what}: ${describeError(error)}`)
    }
  }
  const remove = (path: string): Promise<void> =>
    attempt(path, () => {
      rmSync(join(root, path), { recursive: true, force: true })
      removed.push(path)
    })
  const systemctl = async (...args: readonly string[]): Promise<void> => {
    const { status, stderr } = await run('systemctl', args)
    if (status !== 0) throw new Error(stderr.trim() || `systemctl ended with ${status}`)
  }

  // First, so that no query is sent to a resolver that is about to stop.
  for (const { path, unit } of plan.resolvers) {
    await remove(path)
    await attempt(unit, () => systemctl('try-restart', unit))
  }
  for (const unit of plan.units)
    await attempt(unit, async () => {
      await systemctl('disable', '--now', unit)
      removed.push(`unit ${unit} (stopped and disabled)`)
    })
  await attempt('capture rules', async () => {
    removed.push(...(await options.clearCapture()))
  })
  for (const path of plan.paths) await remove(path)
  for (const folder of [...plan.folders, ...plan.resolvers.map(({ path }) => dirname(path))])
    await attempt(folder, () => {
      if (removeIfEmpty(join(root, folder))) removed.push(folder)
    })
  if (plan.units.length > 0) {
    await attempt('systemd', () => systemctl('daemon-reload'))
    // It fails when there is nothing to reset, which is fine.
    await run('systemctl', ['reset-failed', ...plan.units]).catch(() => undefined)
  }
  for (const user of plan.users) await removeUser(run, user, removed, failed)
  return { removed, failed }
}

async function removeUser(
  run: RunTool,
  user: string,
  removed: string[],
  failed: string[],
): Promise<void> {
  for (const [tool, database] of [
    ['userdel', 'passwd'],
    ['groupdel', 'group'],
  ] as const) {
    // userdel also removes the user's own group.
    if ((await run('getent', [database, user]).catch(() => undefined))?.status !== 0) continue
    const result = await run(tool, [user]).catch((error: unknown) => ({
      status: 1,
      stderr: describeError(error),
    }))
    const what = database === 'passwd' ? `user ${user}` : `group ${user}`
    if (result.status === 0) removed.push(what)
    else failed.push(`${what}: ${result.stderr.trim()}`)
  }
}

/** Files and folders that a configuration names. */
interface Named {
  readonly paths: readonly string[]
  readonly folders: readonly string[]
  readonly shared: readonly string[]
}

function namedByConfig(config: unknown): Named {
  const text = (...keys: readonly string[]): string | undefined => {
    let value = config
    for (const key of keys) value = member(value, key)
    return typeof value === 'string' && value.startsWith('/') ? value : undefined
  }
  const services = member(config, 'services')
  const names = (Array.isArray(services) ? services : [])
    .map((service) => member(service, 'name'))
    .filter((name) => typeof name === 'string')
  const state = text('state', 'directory')
  const directory = text('certificates', 'directory')
  const isBuiltin = member(member(config, 'certificates'), 'kind') === 'builtin'
  const patterns = [text('certificates', 'key'), text('certificates', 'certificate')]
  const certificateNames = isBuiltin
    ? ['host.pem', 'bundle.json', 'services']
    : ['trust-domain', 'roots.pem', ...names.flatMap((name) => [`${name}.key`, `${name}.pem`])]
  return {
    paths: [
      ...(directory === undefined ? [] : certificateNames.map((name) => join(directory, name))),
      ...patterns.flatMap((pattern) =>
        pattern === undefined ? [] : names.map((name) => pattern.replaceAll('{service}', name)),
      ),
      ...[text('certificates', 'tokenFile')].flatMap((path) => path ?? []),
      ...(state === undefined ? [] : stateNames.map((name) => join(state, `${name}.json*`))),
    ],
    folders: [directory, state].flatMap((path) => path ?? []),
    shared: [
      text('catalog', 'tokenFile'),
      text('catalog', 'path'),
      text('certificates', 'roots'),
    ].flatMap((path) => (path === undefined || isIn(path, SHARED_WITH_NEIGHBORS) ? [] : path)),
  }
}

/** The readable part of a configuration, valid or not. */
function readLoosely(path: string): unknown {
  try {
    return parseDocument(readFileSync(path, 'utf8'), { logLevel: 'silent' }).toJS() as unknown
  } catch {
    return undefined
  }
}

/** The existing paths that match a path, which may end in `*`. */
function expanded(root: string, path: string): string[] {
  if (!path.endsWith('*')) return hasEntry(join(root, path)) ? [path] : []
  const names = globSync(basename(path), { cwd: join(root, dirname(path)) })
  return names.map((name) => join(dirname(path), name))
}

/** Removes paths that lie in another one of the list. */
function outermost(paths: readonly string[]): string[] {
  const distinct = [...new Set(paths)]
  return distinct.filter(
    (path) =>
      !isIn(
        path,
        distinct.filter((other) => other !== path),
      ),
  )
}

function isIn(path: string, folders: readonly string[]): boolean {
  return folders.some((folder) => path === folder || path.startsWith(`${folder}/`))
}

/** Also true for a dangling link. */
function hasEntry(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined
}

function removeIfEmpty(path: string): boolean {
  if (!existsSync(path)) return false
  try {
    rmdirSync(path)
    return true
  } catch (error) {
    if (errorCode(error) === 'ENOTEMPTY') return false
    throw error
  }
}
