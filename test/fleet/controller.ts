/**
 * Who rolls hostmesh out: Ansible with the collection of this checkout, over SSH, from the wire of a test network.
 */
import { rmSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'

import type { Namespace } from '../harness/network.ts'
import { mustRun, onEarlyExit, runCommand } from '../harness/owned-process.ts'
import type { Machine } from './machine.ts'

const checkout = resolve(import.meta.dirname, '../..')

/** One playbook over a few machines. Milliseconds, before patience. */
const PLAY_LIMIT_MS = 180_000

/** Options of a playbook that goes over all machines at once, where their order is not what is tested. */
export const AT_ONCE: readonly string[] = ['--extra-vars', 'hostmesh_agent_serial=2']

type Vars = Readonly<Record<string, unknown>>
type Group = ReadonlyMap<Machine, Vars>

/** What became of one host, from Ansible's recap. */
export interface HostResult {
  readonly ok: number
  readonly changed: number
  readonly unreachable: number
  readonly failed: number
}

/** The playbooks of the collection. */
export type Playbook = 'site' | 'uninstall' | 'uninstall_aggregator' | 'uninstall_ca'

/** How one run of a playbook ended. */
export interface PlayResult {
  readonly code: number
  /** By inventory name; a host that was never reached by the rollout is not in it. */
  readonly hosts: Readonly<Record<string, HostResult>>
  readonly output: string
}

/** The machine of an operator. Disposing it removes its folder. */
export class Controller implements AsyncDisposable {
  /** What a host's /root/.ssh/authorized_keys must hold. */
  readonly publicKey: string
  /** A folder of this controller alone. */
  readonly folder: string
  private readonly wire: Namespace
  private readonly forgetExit: () => void

  private constructor(folder: string, wire: Namespace, publicKey: string) {
    this.folder = folder
    this.wire = wire
    this.publicKey = publicKey
    this.forgetExit = onEarlyExit(() => rmSync(folder, { recursive: true, force: true }))
  }

  /** Installs the collection as a user would, and makes a key pair. */
  static async create(wire: Namespace): Promise<Controller> {
    const folder = await mkdtemp(join(tmpdir(), 'hmt-fleet-'))
    const key = join(folder, 'key')
    await mustRun(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-f', key])
    const controller = new Controller(folder, wire, await readFile(`${key}.pub`, 'utf8'))
    const { code, stdout, stderr } = await runCommand(
      ['ansible-galaxy', 'collection', 'install', join(checkout, 'ansible'), '-p', folder],
      { env: controller.environment() },
    )
    if (code !== 0) throw new Error(`Cannot install the collection: ${stdout}${stderr}`)
    return controller
  }

  /**
   * Writes the inventory: these machines are the group hostmesh, with variables of their own, and the authorities, if
   * any, the group hostmesh_ca.
   */
  async manage(machines: Group, common: Vars, authorities: Group = new Map()): Promise<void> {
    const vars = {
      ansible_user: 'root',
      ansible_python_interpreter: '/usr/bin/python3',
      ansible_ssh_private_key_file: join(this.folder, 'key'),
    }
    // JSON is YAML.
    const inventory = {
      all: {
        vars,
        children: {
          hostmesh: { hosts: hostsOf(machines), vars: common },
          ...(authorities.size > 0 && { hostmesh_ca: { hosts: hostsOf(authorities) } }),
        },
      },
    }
    await mkdir(join(this.folder, 'inventory'), { recursive: true })
    await writeFile(join(this.folder, 'inventory/hosts.yaml'), JSON.stringify(inventory, null, 2))
  }

  /** Runs a playbook of the collection on all machines, whatever comes of it. */
  async play(playbook: Playbook, ...options: readonly string[]): Promise<PlayResult> {
    const argv = ['ansible-playbook', `hostmesh.mesh.${playbook}`, '-i', `${this.folder}/inventory`]
    const { code, stdout, stderr } = await runCommand(this.wire.inside([...argv, ...options]), {
      env: this.environment(),
      limitMs: PLAY_LIMIT_MS,
    })
    return { code, hosts: parseRecap(stdout), output: stdout + stderr }
  }

  /** Runs a playbook of the collection on all machines. @throws with its output when it fails anywhere. */
  async mustPlay(playbook: Playbook, ...options: readonly string[]): Promise<PlayResult> {
    const run = await this.play(playbook, ...options)
    if (run.code === 0) return run
    throw new Error(`The playbook ${playbook} failed with ${run.code}:\n${run.output}`)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.folder, { recursive: true, force: true })
    this.forgetExit()
  }

  private environment(): Record<string, string> {
    const options = {
      UserKnownHostsFile: '/dev/null',
      StrictHostKeyChecking: 'no',
      ControlMaster: 'auto',
      ControlPersist: '10s',
    }
    const args = Object.entries(options).map(([name, value]) => `-o ${name}=${value}`)
    return {
      ANSIBLE_HOME: join(this.folder, 'home'),
      ANSIBLE_LOCAL_TEMP: join(this.folder, 'tmp'),
      ANSIBLE_COLLECTIONS_PATH: this.folder,
      ANSIBLE_NOCOLOR: '1',
      ANSIBLE_PIPELINING: '1',
      ANSIBLE_SSH_ARGS: args.join(' '),
      ANSIBLE_SSH_CONTROL_PATH_DIR: join(this.folder, 'ssh'),
      LC_ALL: 'C.UTF-8',
    }
  }
}

function hostsOf(group: Group): Vars {
  return Object.fromEntries(
    [...group].map(([{ name, ip }, vars]) => [name, { ansible_host: ip, ...vars }]),
  )
}

/** `host-a : ok=3 changed=1 unreachable=0 failed=0 skipped=2 …` */
function parseRecap(output: string): Record<string, HostResult> {
  const recap = output.slice(output.lastIndexOf('PLAY RECAP'))
  const number = (line: string, key: string): number =>
    Number(new RegExp(`\\b${key}=(\\d+)`).exec(line)?.[1] ?? Number.NaN)
  return Object.fromEntries(
    [...recap.matchAll(/^(\S+) +: (ok=.*)$/gm)].map(([, name = '', counts = '']) => [
      name,
      {
        ok: number(counts, 'ok'),
        changed: number(counts, 'changed'),
        unreachable: number(counts, 'unreachable'),
        failed: number(counts, 'failed'),
      },
    ]),
  )
}
