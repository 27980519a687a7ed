/**
 * The two hosts of a site: network namespaces A (10.77.0.1) and B (10.77.0.2), joined by a veth pair.
 *
 * Every subject has a pair of its own, so that the iptables rules of one (and the connection tracking they
 * switch on in their namespace) cost the others nothing. Names carry the pid of the benchmark that made
 * them; those of a benchmark that no longer lives are swept at the next start.
 */
import { existsSync, readFileSync } from 'node:fs'
import { MeshError } from '../../src/lib/errors.ts'
import { run } from './process.ts'
import { requireTool } from './tools.ts'

/** Address of host A, where the load is. */
export const ADDRESS_A = '10.77.0.1'

/** Address of host B, where the backend is. */
export const ADDRESS_B = '10.77.0.2'

const PREFIX = 'hostmesh-bench-'

/** File descriptors a process needs: two for each of 5,000 idle connections, with room. */
const FILES_NEEDED = 16_384

/** One network namespace. */
export interface Namespace {
  readonly name: string
  /** The command line that runs `argv` in here, as numeric user `uid` when given. The pid stays. */
  command(argv: readonly string[], uid?: number): readonly string[]
}

/** Two joined namespaces. Disposing removes both, and with them the link and all rules inside. */
export interface NamespacePair extends AsyncDisposable {
  readonly a: Namespace
  readonly b: Namespace
}

/** Makes the pair number `index` of this process. Needs root. */
export async function createNamespacePair(index: number): Promise<NamespacePair> {
  const names = ['a', 'b'].map((side) => `${PREFIX}${process.pid}-${index}${side}`)
  const [nameA = '', nameB = ''] = names
  const ip = requireTool('ip')
  try {
    for (const name of names) await run([ip, 'netns', 'add', name])
    await run([
      ip,
      'link',
      'add',
      'veth0',
      'netns',
      nameA,
      'type',
      'veth',
      'peer',
      'name',
      'veth0',
      'netns',
      nameB,
    ])
    await configure(nameA, ADDRESS_A, ADDRESS_B)
    await configure(nameB, ADDRESS_B, ADDRESS_A)
  } catch (error) {
    await removeNamespaces(names)
    throw error
  }
  return {
    a: namespace(nameA),
    b: namespace(nameB),
    [Symbol.asyncDispose]: () => removeNamespaces(names),
  }
}

async function configure(name: string, address: string, gateway: string): Promise<void> {
  const ip = requireTool('ip')
  await run([ip, '-n', name, 'address', 'add', `${address}/24`, 'dev', 'veth0'])
  await run([ip, '-n', name, 'link', 'set', 'lo', 'up'])
  await run([ip, '-n', name, 'link', 'set', 'veth0', 'up'])
  // A virtual address must have a route before the kernel asks the rules that divert it.
  await run([ip, '-n', name, 'route', 'add', 'default', 'via', gateway])
  // Room for thousands of new connections a second; our own ports stay below the range.
  await run([
    ...namespace(name).command(['/bin/sh', '-c']),
    'cd /proc/sys/net/ipv4 && echo 20000 65535 >ip_local_port_range && echo 1 >tcp_tw_reuse &&' +
      ' echo 8192 >../core/somaxconn && echo 8192 >tcp_max_syn_backlog',
  ])
}

function namespace(name: string): Namespace {
  const enter = [requireTool('nsenter'), `--net=/run/netns/${name}`]
  const limit = [requireTool('prlimit'), `--nofile=${FILES_NEEDED}:`]
  return {
    name,
    command(argv, uid) {
      const become =
        uid === undefined
          ? []
          : [requireTool('setpriv'), `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups']
      return [...enter, ...limit, ...become, ...argv]
    },
  }
}

async function removeNamespaces(names: readonly string[]): Promise<void> {
  const ip = requireTool('ip')
  for (const name of names)
    if (existsSync(`/run/netns/${name}`)) await run([ip, 'netns', 'delete', name])
}

/** Removes what a benchmark that was killed left behind, its processes first. Needs root. */
export async function sweepStaleNamespaces(): Promise<void> {
  const ip = requireTool('ip')
  const listed = await run([ip, 'netns', 'list'])
  for (const name of staleNamespaces(listed, (pid) => existsSync(`/proc/${pid}`))) {
    const pids = (await run([ip, 'netns', 'pids', name])).split('\n').filter((pid) => pid !== '')
    for (const pid of pids) killIfThere(Number(pid))
    await removeNamespaces([name])
  }
}

/** The namespaces in the output of `ip netns list` that belong to a benchmark which is not alive. */
export function staleNamespaces(
  listed: string,
  isAlive: (pid: number) => boolean,
): readonly string[] {
  const stale: string[] = []
  for (const line of listed.split('\n')) {
    const match = /^(hostmesh-bench-(\d+)-\d+[ab])(\s|$)/.exec(line)
    if (match?.[1] !== undefined && !isAlive(Number(match[2]))) stale.push(match[1])
  }
  return stale
}

function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended between the listing and here, which is what we wanted.
  }
}

/** Throws HM_BENCH_NOT_ROOT unless namespaces can be made, HM_BENCH_FILE_LIMIT with too low a limit. */
export function requireRights(): void {
  const allowed = hardFileLimit(readFileSync('/proc/self/limits', 'utf8'))
  if (allowed < FILES_NEEDED)
    throw new MeshError(
      'HM_BENCH_FILE_LIMIT',
      `Cannot hold 5,000 connections: at most ${allowed} open files are allowed, ${FILES_NEEDED} are needed`,
      { hint: 'Raise the hard limit of open files (ulimit -Hn).' },
    )
  if (process.getuid?.() === 0) return
  throw new MeshError('HM_BENCH_NOT_ROOT', 'Cannot make network namespaces: not root', {
    hint: 'Run the benchmark as root; it touches nothing outside the namespaces it makes.',
  })
}

/** The most open files a process may ask for, from `/proc/<pid>/limits`. */
export function hardFileLimit(limits: string): number {
  const match = /^Max open files\s+\S+\s+(\d+|unlimited)/m.exec(limits)
  return match?.[1] === 'unlimited' ? Number.POSITIVE_INFINITY : Number(match?.[1] ?? 0)
}
