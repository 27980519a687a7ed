/**
 * A whole mesh on one machine, for tests and the demo: hosts, services as real processes, real daemons.
 *
 * ```ts
 * await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
 * const web = await mesh.host('a').service('web').start()
 * await mesh.host('b').service('db', { listens: 5432 }).start(echo)
 * await mesh.allow('web', 'db')
 * await mesh.up()
 * const answer = await web.call('db')
 * ```
 *
 * Disposal is part of every test: it checks that each live daemon has no connection left, ends with code 0,
 * has taken its rules back and logged nothing unhandled, and that no process stays behind.
 */

import { rmdirSync, rmSync } from 'node:fs'
import { chmod, mkdir, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ConfigInput } from '../../src/config/schema.ts'
import { REPORTER_SERVICE } from '../../src/model/report.ts'
import {
  type ClusterOptions,
  CONSUL_HOST,
  Consul,
  consulHostOf,
  type Datacenters,
  furtherServerHosts,
} from './consul.ts'
import { eventually } from './eventually.ts'
import { FileCatalog } from './file-catalog.ts'
import { Host } from './host.ts'
import { Network } from './network.ts'
import { onEarlyExit } from './owned-process.ts'
import type { Instance, TestCatalog } from './test-catalog.ts'
import { WireCapture } from './wire-capture.ts'

/** What a mesh is started with. */
export interface MeshOptions {
  readonly hosts: readonly string[]
  readonly catalog: 'file' | 'consul'
  /** Whether the daemons divert connections; on unless given. */
  readonly capture?: 'on' | 'off'
  readonly workers?: number
  /** `one`: this process is in a user namespace of a single user and cannot start services as others. */
  readonly users?: 'distinct' | 'one'
  /** Hosts without a daemon of ours: Connect sidecars, impostors. */
  readonly daemonless?: readonly string[]
  /** Hosts of another datacenter than dc1; only with Consul. */
  readonly datacenters?: Datacenters
  /** Settings that replace the harness's own in the configuration of every Consul agent. */
  readonly consul?: Readonly<Record<string, unknown>>
  /** How the cluster of Consul differs from the usual one: ACLs, more servers. */
  readonly cluster?: ClusterOptions
  /**
   * Sections that replace the harness's own in every host's configuration, or in that of a host by its name. With a Consul `catalog` that follows
   * less than all services, {@link Mesh.settled} waits for those that a host follows.
   */
  readonly config?: Partial<ConfigInput> | ((host: string) => Partial<ConfigInput>)
}

/** Where a call goes: a virtual address, and the port that the service's application listens on. */
export interface VirtualAddress {
  readonly ip: string
  readonly port: number
}

/** Builds the network and the catalog. Daemons are started by {@link Mesh.up}. */
export async function startMesh(
  options: MeshOptions & { catalog: 'file' },
): Promise<Mesh<FileCatalog>>
export async function startMesh(options: MeshOptions & { catalog: 'consul' }): Promise<Mesh<Consul>>
export async function startMesh(options: MeshOptions): Promise<Mesh>
export async function startMesh(options: MeshOptions): Promise<Mesh> {
  await using undo = new AsyncDisposableStack()
  const folder = await mkdtemp(join(tmpdir(), 'hmt-mesh-'))
  // Services of other users have folders of their own in it.
  await chmod(folder, 0o711)
  undo.defer(() => rm(folder, { recursive: true, force: true }))
  undo.defer(onEarlyExit(() => rmSync(folder, { recursive: true, force: true })))
  const { hosts, cluster = {} } = options
  const isConsul = options.catalog === 'consul'
  const { datacenters = {} } = options
  const consulHosts = [
    CONSUL_HOST,
    ...furtherServerHosts(cluster),
    ...new Set(Object.values(datacenters).map(consulHostOf)),
  ]
  const network = undo.use(await Network.create(isConsul ? [...hosts, ...consulHosts] : hosts))
  const catalog: TestCatalog = undo.use(
    isConsul
      ? await Consul.create(folder, network, hosts, {
          ...cluster,
          datacenters,
          settings: options.consul,
        })
      : await FileCatalog.create(folder),
  )
  return new Mesh({ options, folder, network, catalog, undo: undo.move() })
}

interface MeshParts<C extends TestCatalog> {
  readonly options: MeshOptions
  readonly folder: string
  readonly network: Network
  readonly catalog: C
  readonly undo: AsyncDisposableStack
}

/** A running mesh. Disposing it ends everything and checks that it ended well. */
export class Mesh<C extends TestCatalog = TestCatalog> implements AsyncDisposable {
  readonly options: MeshOptions
  /** A folder of this mesh alone, removed with it. */
  readonly folder: string
  readonly network: Network
  readonly catalog: C
  /** Parent of the cgroups of services that are known by theirs. */
  readonly cgroupName: string
  private readonly hosts: ReadonlyMap<string, Host>
  private readonly undo: AsyncDisposableStack
  private readonly processes = new AsyncDisposableStack()
  private readonly instances = new Map<string, Instance>()
  private readonly rulesBefore = new Map<Host, string>()

  constructor(parts: MeshParts<C>) {
    const { options, folder, network, catalog, undo } = parts
    this.options = options
    this.folder = folder
    this.network = network
    this.catalog = catalog
    this.undo = undo
    this.cgroupName = network.wire.name
    this.hosts = new Map(
      options.hosts.map((name) => [name, new Host(this, name, network.host(name))]),
    )
  }

  host(name: string): Host {
    const host = this.hosts.get(name)
    if (host === undefined) throw new Error(`No host '${name}' in this mesh`)
    return host
  }

  /** Lets one service reach another; `*` is any. Takes effect within moments: see eventually(). */
  async allow(source: string, destination: string): Promise<void> {
    await this.catalog.setIntention(source, destination, 'allow')
  }

  /** Denies one pair. What nothing is said about is denied anyhow. */
  async deny(source: string, destination: string): Promise<void> {
    await this.catalog.setIntention(source, destination, 'deny')
  }

  /**
   * Starts the daemons that are not running, and waits until all of them know all instances.
   * @param prefix a command that each daemon is started by, such as setpriv with its options
   */
  async up(prefix: readonly string[] = []): Promise<void> {
    await Promise.all(
      [...this.hosts.values()]
        .filter(({ daemon }) => !daemon.isRunning)
        .filter(({ name }) => this.options.daemonless?.includes(name) !== true)
        .map(async (host) => {
          await this.prepare(host)
          await host.daemon.start(prefix)
        }),
    )
    await this.settled()
  }

  /** Writes a host's configuration and has its certificates made; its daemon may be started then. */
  async prepare(host: Host): Promise<void> {
    if (!this.rulesBefore.has(host)) this.rulesBefore.set(host, await host.namespace.rules())
    const config = host.config()
    const reports = (config.reports?.to ?? []).length > 0
    await this.catalog.prepare(host.name, [
      ...host.services.map(({ name }) => name),
      ...(reports ? [REPORTER_SERVICE] : []),
    ])
    await host.daemon.writeConfig(config)
  }

  /** Waits until every live daemon knows exactly the instances that are in the catalog, all healthy. */
  async settled(): Promise<void> {
    await eventually(
      async () => {
        for (const host of this.hosts.values())
          if (host.daemon.isRunning) await this.assertKnown(host)
      },
      { withinMs: 20_000 },
    )
  }

  /** Where processes of `from` reach a service. */
  async virtualAddress(service: string, from: Host, family: 4 | 6 = 4): Promise<VirtualAddress> {
    const { services } = await from.daemon.services()
    const ips = services.find(({ name }) => name === service)?.virtualIps ?? []
    const ip = ips.find((candidate) => candidate.includes(':') === (family === 6))
    if (ip === undefined)
      throw new Error(`${from.name} knows no IPv${family} virtual address of '${service}'`)
    const port = [...this.instances.values()].find((one) => one.service === service)?.port
    return { ip, port: port ?? 80 }
  }

  /** Starts to record what crosses the wire between the hosts; stopped with the mesh at the latest. */
  async listenOnWire(): Promise<WireCapture> {
    const capture = await WireCapture.start(this.network.wire)
    this.own(capture)
    return capture
  }

  /** Ends `resource` before the daemons when the mesh ends. */
  own(resource: AsyncDisposable): void {
    this.processes.use(resource)
  }

  /** Ends `resource` after the daemons, for what they still need to end well. */
  ownBeyondDaemons(resource: AsyncDisposable): void {
    this.undo.use(resource)
  }

  /** An instance that daemons are expected to know; see {@link settled}. */
  joined(instance: Instance): void {
    this.instances.set(`${instance.host}/${instance.id}`, instance)
  }

  /** The opposite of {@link joined}. */
  left(instance: Instance): void {
    this.instances.delete(`${instance.host}/${instance.id}`)
  }

  /** Makes a cgroup below this mesh's own and returns its folder. */
  async makeCgroup(path: string | undefined): Promise<string | undefined> {
    if (path === undefined) return undefined
    const root = await cgroupRoot()
    const folders = [join(root, path), join(root, this.cgroupName)]
    await mkdir(join(root, path), { recursive: true })
    const remove = (): void => {
      // The parent goes with its last child; a child goes when the kernel has reaped its processes.
      for (const folder of folders) {
        try {
          rmdirSync(folder)
        } catch {
          // Not empty yet: a later call, or the next one of the same mesh, removes it.
        }
      }
    }
    this.undo.defer(onEarlyExit(remove))
    this.undo.defer(remove)
    return folders[0]
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await using undo = this.undo
    // Disposed in reverse: services first, then daemons with their checks, then what they stand on.
    undo.defer(() => this.assertNothingLeft())
    for (const host of this.hosts.values()) {
      undo.defer(async () => {
        const wasRunning = host.daemon.isRunning
        await host.daemon[Symbol.asyncDispose]()
        // A daemon that has stopped leaves rules that refuse; the uninstaller takes them away.
        if (!wasRunning) return
        await host.daemon.command('capture', 'clear')
        await this.assertRulesGone(host)
      })
    }
    undo.use(this.processes)
  }

  /** @throws when the rules of a host are not those from before its daemon was first started. */
  async assertRulesGone(host: Host): Promise<void> {
    const before = this.rulesBefore.get(host) ?? ''
    const after = await host.namespace.rules()
    if (after !== before)
      throw new Error(`Rules left on ${host.name}:\n${after}\nbefore its daemon:\n${before}`)
  }

  private async assertKnown(host: Host): Promise<void> {
    const { services } = await host.daemon.services()
    const datacenterOf = (name: string): string | undefined => this.options.datacenters?.[name]
    const expected = Map.groupBy(
      [...this.instances.values()].filter(
        (instance) => datacenterOf(instance.host) === datacenterOf(host.name),
      ),
      ({ service }) => service,
    )
    const { config } = this.options
    const { catalog } = (typeof config === 'function' ? config(host.name) : config) ?? {}
    const followsAll = catalog?.kind !== 'consul' || catalog.watch === 'all'
    const names = new Set([
      ...(followsAll ? expected.keys() : []),
      ...services.map(({ name }) => name),
    ])
    for (const name of names) {
      const known =
        services
          .find((service) => service.name === name)
          ?.endpoints.filter(({ priority }) => priority === 0) ?? []
      const wanted = (expected.get(name) ?? []).map((instance) => instance.host).toSorted()
      const healthy = known
        .filter(({ health }) => health === 'passing')
        .map(({ node }) => node)
        .toSorted()
      if (wanted.join() !== healthy.join())
        throw new Error(
          `${host.name} knows ${name} on [${healthy.join()}], the catalog says [${wanted.join()}]`,
        )
    }
  }

  private async assertNothingLeft(): Promise<void> {
    for (const host of this.hosts.values()) {
      await eventually(async () => {
        const left = await withoutConsul(await host.namespace.pids())
        if (left.length > 0) throw new Error(`Processes left on ${host.name}: ${left.join(', ')}`)
      }).catch(async (error: unknown) => {
        for (const pid of await host.namespace.pids()) process.kill(pid, 'SIGKILL')
        throw error
      })
    }
  }
}

/** The agents are stopped after this check, with the catalog. */
async function withoutConsul(pids: readonly number[]): Promise<readonly string[]> {
  const names = await Promise.all(
    pids.map((pid) => readFile(`/proc/${pid}/comm`, 'utf8').catch(() => '')),
  )
  return names
    .map((name, index) => ({ name: name.trim(), pid: pids[index] }))
    .filter(({ name }) => name !== '' && name !== 'consul')
    .map(({ name, pid }) => `${name} (pid ${pid})`)
}

async function cgroupRoot(): Promise<string> {
  const mounts = await readFile('/proc/mounts', 'utf8')
  const folder = mounts
    .split('\n')
    .map((line) => line.split(' '))
    .find(([, , kind]) => kind === 'cgroup2')?.[1]
  if (folder === undefined) throw new Error('No cgroup v2 tree is mounted on this machine')
  return folder
}
