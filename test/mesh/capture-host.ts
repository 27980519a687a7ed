/**
 * Capture on hosts of a test network, with a choice of iptables variant, and callers to try it with.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmdirSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  createCommandRunner,
  type RunCommand,
  SYSTEM_PATH,
} from '../../src/controlplane/capture/command.ts'
import { TableOwner } from '../../src/controlplane/capture/table-owner.ts'
import { findCgroupRoot } from '../../src/controlplane/capture/workloads.ts'
import type { CapturedBy } from '../../src/dataplane/capture/original-destination.ts'
import { eventually } from '../harness/eventually.ts'
import type { Namespace } from '../harness/network.ts'
import { OwnedProcess, onEarlyExit, runCommand } from '../harness/owned-process.ts'

/** The two programs behind the name iptables. */
export type Variant = 'nft' | 'legacy'

/** What a caller learned: where it landed, or how connecting failed. */
export interface Landing {
  readonly port?: number
  readonly original?: { readonly ip: string; readonly port: number } | undefined
  readonly error?: string
}

/** A folder in which the plain names iptables-save and so on are one variant. */
export class VariantPath implements Disposable {
  readonly folder: string
  readonly searchPath: string

  constructor(variant: Variant) {
    this.folder = mkdtempSync(join(tmpdir(), `hmc-${variant}-`))
    for (const name of ['iptables', 'ip6tables'])
      for (const suffix of ['', '-save', '-restore'])
        symlinkSync(`/usr/sbin/xtables-${variant}-multi`, join(this.folder, `${name}${suffix}`))
    this.searchPath = `${this.folder}:${SYSTEM_PATH}`
  }

  /** A runner whose tools are of this variant and act on a host. */
  runnerIn(host: Namespace): RunCommand {
    const run = createCommandRunner(this.searchPath)
    return (tool, args, input) => {
      const [command = '', ...rest] = host.inside([tool, ...args])
      return run(command, rest, input)
    }
  }

  [Symbol.dispose](): void {
    rmSync(this.folder, { recursive: true })
  }
}

/** Starts capture-listener.ts on a host and waits until it listens. */
export async function startListener(
  host: Namespace,
  ports: readonly number[],
  by: CapturedBy | 'denying' | 'plain' = 'redirect',
): Promise<OwnedProcess> {
  const script = join(import.meta.dirname, 'capture-listener.ts')
  const listener = await OwnedProcess.start(
    host.inside([process.execPath, script, by, ...ports.map(String)]),
    { name: `capture listener on ${host.name}` },
  )
  await eventually(() => {
    if (!listener.output.includes('ready')) throw new Error(`Not ready: ${listener.output}`)
  })
  return listener
}

/** A command line that runs on a host as a user, and as the group of that number. */
export function insideAs(host: Namespace, uid: number, argv: readonly string[]): string[] {
  const id = String(uid)
  return ['nsenter', `--net=${host.path}`, '-S', id, '-G', id, '--', ...argv]
}

/** Who holds the copy of the guard on a host, and the nft processes that it has started, one after the other. */
export function tableOwnerIn(host: Namespace): {
  readonly owner: TableOwner
  readonly children: readonly ChildProcess[]
} {
  const children: ChildProcess[] = []
  const owner = new TableOwner(() => {
    const [command = '', ...args] = host.inside(['nft', '-i'])
    const child = spawn(command, args, { stdio: ['pipe', 'ignore', 'pipe'] })
    children.push(child)
    return child
  })
  return { owner, children }
}

/** Who connects: a user, optionally inside a cgroup (a folder below the cgroup v2 mount). */
export interface Caller {
  readonly uid: number
  readonly cgroup?: string
}

/** Connects from a host and reports what happened. Takes at most 5 s. */
export async function connectFrom(
  host: Namespace,
  caller: Caller,
  ip: string,
  port: number,
): Promise<Landing> {
  const shell = `exec 3<>/dev/tcp/${ip}/${port} && cat <&3`
  const dial = insideAs(host, caller.uid, ['bash', '--norc', '-c', shell])
  const argv =
    caller.cgroup === undefined
      ? dial
      : ['bash', '-c', `echo $$ > "$0" && exec "$@"`, join(caller.cgroup, 'cgroup.procs'), ...dial]
  const result = await runCommand(['timeout', '5', ...argv])
  if (result.stdout.startsWith('{')) return JSON.parse(result.stdout) as Landing
  return { error: /([A-Z][a-z ]+)\n/.exec(result.stderr)?.[1] ?? `status ${result.code}` }
}

/** A cgroup of our own, removed at the end; `path` is as a rule names it. */
export class TestCgroup implements Disposable {
  readonly path: string
  readonly folder: string
  readonly #root: string
  readonly #forgetExit: () => void

  private constructor(root: string, path: string) {
    this.#root = root
    this.path = path
    this.folder = join(root, path)
    mkdirSync(this.folder, { recursive: true })
    this.#forgetExit = onEarlyExit(() => this.#remove())
  }

  /** Makes `<own folder>/<name>` below wherever cgroup v2 is mounted. */
  static async create(name: string): Promise<TestCgroup> {
    const root = await findCgroupRoot()
    if (root === undefined) throw new Error('This machine has no cgroup v2 mount')
    return new TestCgroup(root, `hmc-${process.pid}/${name}`)
  }

  /** What systemd does when a unit restarts: the same path, another cgroup. */
  restart(): void {
    rmdirSync(this.folder)
    mkdirSync(this.folder)
  }

  [Symbol.dispose](): void {
    this.#forgetExit()
    this.#remove()
  }

  #remove(): void {
    removeCgroup(this.folder)
    removeCgroup(join(this.#root, `hmc-${process.pid}`))
  }
}

function removeCgroup(folder: string): void {
  try {
    rmdirSync(folder)
  } catch {
    // Already gone, or another cgroup of this test is still below it.
  }
}

/** Rules of both families without counters, comments and what the tools print of tables never used. */
export async function savedRules(run: RunCommand): Promise<string> {
  const texts: string[] = []
  for (const tool of ['iptables-save', 'ip6tables-save']) {
    const { stdout } = await run(tool, [])
    texts.push(stdout.replaceAll(/^#.*\n/gm, '').replaceAll(/\[\d+:\d+\]/g, ''))
  }
  return texts.join('')
}
