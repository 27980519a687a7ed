/**
 * Whole test machines: a real systemd as process 1, with sshd, in a host's network namespace of a test network.
 *
 * All machines boot from one tree, which scripts/setup.sh makes and nothing writes to; what a machine writes goes
 * to a layer of its own that is removed with it. A machine that was powered off or cut can boot again and finds
 * its disk as it was. Its network namespace outlives it, so unlike on hardware the rules of the kernel do, too.
 */
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { mkdir, mkdtemp, readdir, readFile, rm, rmdir, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'

import { eventually, within } from '../harness/eventually.ts'
import type { Namespace } from '../harness/network.ts'
import {
  type CommandResult,
  OwnedProcess,
  onEarlyExit,
  runCommand,
} from '../harness/owned-process.ts'

/** Made by `sh scripts/setup.sh fleet`. */
const ROOT = resolve(import.meta.dirname, '../../.cache/fleet/root')

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** Where systemd-nspawn hands mounts to its machines. */
const PROPAGATE = '/run/systemd/nspawn/propagate'

/** Booting takes a second or two. Milliseconds, before patience. */
const BOOT_LIMIT_MS = 30_000

/** Folders that any running system writes to. */
const VOLATILE = [
  '/tmp',
  '/var/tmp',
  '/var/log',
  '/var/lib/systemd',
  '/var/cache',
  '/root/.ansible',
]

/** How systemd-nspawn says, instead of starting the machine again by itself, that it wants to reboot. */
const REBOOT_CODE = 133

/** Starts systemd-nspawn in cgroups of its own, on the layers of one machine. Arguments: see {@link Machine.boot}. */
const LAUNCH = `
for folder in $1; do mkdir -p "$folder"; echo $$ >"$folder/cgroup.procs"; done
shift
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
shift 2
SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn "$@"
`

/** One machine. Disposing it switches it off and removes its disk. */
export class Machine implements AsyncDisposable {
  readonly name: string
  readonly namespace: Namespace
  private readonly folder: string
  private readonly forgetExit: () => void
  private process: OwnedProcess | undefined

  private constructor(name: string, namespace: Namespace, folder: string) {
    this.name = name
    this.namespace = namespace
    this.folder = folder
    this.forgetExit = onEarlyExit(() => {
      // Killing systemd-nspawn alone would leave everything in it running.
      for (const cgroup of this.cgroups()) killCgroup(cgroup)
      rmSync(folder, { recursive: true, force: true })
    })
  }

  /** Makes the disk of a machine and puts these files (by path) on it; {@link boot} starts it. */
  static async create(
    name: string,
    namespace: Namespace,
    files: Readonly<Record<string, string>>,
  ): Promise<Machine> {
    await removeStale()
    const folder = await mkdtemp(join(tmpdir(), 'hmt-machine-'))
    const machine = new Machine(name, namespace, folder)
    for (const layer of ['upper', 'work', 'root']) await mkdir(join(folder, layer))
    await machine.put({
      '/etc/hostname': `${name}\n`,
      '/etc/hosts': `127.0.0.1 localhost\n::1 localhost\n127.0.1.1 ${name}\n`,
      // There is no resolver on the network, and asking for one costs everybody seconds.
      '/etc/resolv.conf': '',
      ...files,
    })
    return machine
  }

  get ip(): string {
    return this.namespace.ip
  }

  /** Switches it on and waits until systemd has started everything. */
  async boot(): Promise<void> {
    if (this.process?.hasExited === false) throw new Error(`${this.name} runs already`)
    const nspawn = [
      '--quiet',
      '--boot',
      '--register=no',
      '--keep-unit',
      '--console=pipe',
      `--directory=${this.folder}/root`,
      `--machine=${this.namespace.name}`,
      `--hostname=${this.name}`,
      `--network-namespace-path=${this.namespace.path}`,
      '--resolv-conf=off',
      '--timezone=off',
      '--link-journal=no',
      '--capability=CAP_NET_ADMIN,CAP_NET_RAW',
    ]
    const cgroups = this.cgroups().join(' ')
    // The mount lives in a mount namespace of its own and goes with the last process in it.
    const isolated = ['unshare', '--mount', '--propagation', 'private', 'sh', '-ec', LAUNCH, 'sh']
    this.process = await OwnedProcess.start([...isolated, cgroups, ROOT, this.folder, ...nspawn], {
      name: `machine ${this.name}`,
    })
    await this.booted()
  }

  /** Waits until systemd has started everything. @throws with what failed when something has. */
  async booted(): Promise<void> {
    const state = await eventually(
      async () => {
        if (this.running().hasExited) return 'off'
        const { stdout } = await this.run('systemctl', 'is-system-running')
        if (!/^(running|degraded)$/m.test(stdout)) throw new Error(`it is ${stdout.trim()}`)
        return stdout.trim()
      },
      { withinMs: BOOT_LIMIT_MS, everyMs: 50 },
    )
    if (state === 'running') return
    const failed =
      state === 'off' ? this.running().output : await this.must('systemctl', '--failed')
    throw new Error(`Machine ${this.name} is ${state}:\n${failed}`)
  }

  /** Runs a command on it as root, whatever its exit code. */
  async run(...argv: string[]): Promise<CommandResult> {
    const leader = String(await this.leader())
    return runCommand([
      'nsenter',
      '--target',
      leader,
      '--all',
      'env',
      '-i',
      `PATH=${PATH}`,
      ...argv,
    ])
  }

  /** Runs a command on it as root. @throws when it fails. */
  async must(...argv: string[]): Promise<string> {
    const { code, stdout, stderr } = await this.run(...argv)
    if (code === 0) return stdout
    throw new Error(`${argv.join(' ')} on ${this.name} failed with ${code}: ${stderr || stdout}`)
  }

  /** One property of a unit, as `systemctl show` has it. */
  async property(name: string, unit = 'hostmesh.service'): Promise<string> {
    return (await this.must('systemctl', 'show', unit, '--value', `--property=${name}`)).trim()
  }

  /** Reads a field of /proc/PID/status of the main process of a unit, as it is now. */
  async mainProcess(unit = 'hostmesh.service'): Promise<(field: string) => string> {
    const status = await this.must('cat', `/proc/${await this.property('MainPID', unit)}/status`)
    return (field) => new RegExp(`^${field}:\\s+(.*)$`, 'm').exec(status)?.[1] ?? ''
  }

  /** Has a unit hang, with a watchdog of a second, until systemd has replaced it; then it is as before. */
  async hang(unit: string): Promise<void> {
    const dropIn = `/run/systemd/system/${unit}.d/watchdog.conf`
    await this.must('mkdir', '-p', dirname(dropIn))
    await this.must('sh', '-c', `printf '[Service]\\nWatchdogSec=1s\\n' >${dropIn}`)
    await this.must('systemctl', 'daemon-reload')
    await this.must('systemctl', 'restart', unit)
    const restarts = await this.restarts(unit)
    await this.must('kill', '-STOP', await this.property('MainPID', unit))
    await eventually(async () => {
      const now = await this.restarts(unit)
      if (now !== restarts + 1) throw new Error(`${unit} was restarted ${now - restarts} times`)
    })
    await this.must('rm', '-r', dirname(dropIn))
    await this.must('systemctl', 'daemon-reload')
    await this.must('systemctl', 'restart', unit)
  }

  /** How often systemd has restarted a unit by itself. */
  async restarts(unit = 'hostmesh.service'): Promise<number> {
    return Number(await this.property('NRestarts', unit))
  }

  /** Every file on it, but what any running system writes. */
  async files(): Promise<readonly string[]> {
    const found = await this.must('find', '/', '-xdev')
    return found
      .split('\n')
      .filter(
        (path) => !VOLATILE.some((folder) => path === folder || path.startsWith(`${folder}/`)),
      )
      .filter((path) => !path.includes('/__pycache__'))
      .toSorted()
  }

  /** Restarts it in an orderly way, as an operator does; does something while it is off. */
  async reboot(whileOff?: () => Promise<void>): Promise<void> {
    const old = this.running()
    await this.must('systemctl', 'reboot')
    const { code } = await within(BOOT_LIMIT_MS, `${this.name} goes down to reboot`, old.exited)
    if (code !== REBOOT_CODE) throw new Error(`${this.name} went down with ${code}:\n${old.output}`)
    await whileOff?.()
    await this.boot()
  }

  /** Pulls the plug: nothing on it is told. It can {@link boot} again. */
  async cutPower(): Promise<void> {
    // Everything in a process namespace dies with its process 1.
    process.kill(await this.leader(), 'SIGKILL')
    await within(BOOT_LIMIT_MS, `The end of ${this.name}`, this.running().exited)
  }

  /** Writes files before the first boot. */
  private async put(files: Readonly<Record<string, string>>): Promise<void> {
    for (const [path, text] of Object.entries(files)) {
      const place = join(this.folder, 'upper', path)
      await mkdir(dirname(place), { recursive: true })
      await writeFile(place, text)
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.process?.hasExited === false) {
      // systemd-nspawn passes it on as an order to power off.
      this.process.signal('SIGTERM')
      await within(BOOT_LIMIT_MS, `${this.name} powers off`, this.process.exited).catch(
        async (error: unknown) => {
          await this.cutPower()
          throw error
        },
      )
    }
    for (const cgroup of this.cgroups()) await removeCgroup(cgroup)
    // systemd-nspawn leaves this behind where /run is no tmpfs.
    await rm(join(PROPAGATE, this.namespace.name), { recursive: true, force: true })
    await rm(this.folder, { recursive: true, force: true })
    this.forgetExit()
  }

  private running(): OwnedProcess {
    if (this.process === undefined) throw new Error(`${this.name} was never booted`)
    return this.process
  }

  /** Process 1 of the machine, by its number outside. */
  private async leader(): Promise<number> {
    const { pid } = this.running()
    const children = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8').catch(() => '')
    for (const child of children.trim().split(' ').filter(Boolean)) {
      const name = await readFile(`/proc/${child}/comm`, 'utf8').catch(() => '')
      if (name.trim() === 'systemd') return Number(child)
    }
    throw new Error(`${this.name} has no process 1 now`)
  }

  private cgroups(): readonly string[] {
    return cgroupTrees().map((tree) => join(tree, this.namespace.name))
  }
}

/** The cgroup trees that systemd uses, of whichever version. */
function cgroupTrees(): readonly string[] {
  return readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
    .filter(([, , type, options]) => type === 'cgroup2' || options?.includes('name=systemd'))
    .flatMap(([, place]) => place ?? [])
}

/** What machines of a test process left that is gone; network.ts has ended the processes in it. */
async function removeStale(): Promise<void> {
  for (const folder of [...cgroupTrees(), PROPAGATE]) {
    for (const name of await readdir(folder).catch(() => [])) {
      const pid = /^hmt-(\d+)-/.exec(name)?.[1]
      if (pid === undefined || existsSync(`/proc/${pid}`)) continue
      if (folder === PROPAGATE) await rm(join(folder, name), { recursive: true, force: true })
      else await removeCgroup(join(folder, name))
    }
  }
}

/** Kills everything in a cgroup and below, where it is of version 2. */
function killCgroup(folder: string): void {
  const kill = join(folder, 'cgroup.kill')
  if (existsSync(kill)) writeFileSync(kill, '1')
}

/** Removes what a machine left of its own tree: empty groups, the deepest first. */
async function removeCgroup(folder: string): Promise<void> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => [])
  for (const entry of entries) if (entry.isDirectory()) await removeCgroup(join(folder, entry.name))
  // The kernel lets a group go when it has reaped the last process in it.
  await eventually(() => rmdir(folder)).catch(ignoreMissing)
}

function ignoreMissing(error: unknown): void {
  if (!/ENOENT/.test(String(error))) throw error
}
