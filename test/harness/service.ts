/**
 * One service of a test host: what it is called, where it listens, who it runs as; and, once started, the
 * process that listens and calls for it.
 */
import { randomUUID } from 'node:crypto'
import type { ConfigInput } from '../../src/config/schema.ts'
import type { Container } from './container.ts'
import type { Host } from './host.ts'
import type { Mesh } from './mesh.ts'
import type { Exit } from './owned-process.ts'
import {
  type CommandResult,
  OwnedProcess,
  type ProcessOptions,
  runCommand,
} from './owned-process.ts'
import type { Instance } from './test-catalog.ts'
import { enterCgroup, type RemoteSocket, Workload } from './workload.ts'
import type { Answer, Behavior } from './workload-protocol.ts'

/** What a service is declared with. */
export interface ServiceOptions {
  /** Unique on its host; the name unless given. */
  readonly id?: string
  /** The port that its application listens on; without it the service only calls. */
  readonly listens?: number
  /** A tunnel port of its own, for peers that send no server name. */
  readonly connectPort?: number
  /** Local ports that lead to other services, as a sidecar's upstreams do. */
  readonly upstreams?: Readonly<Record<string, number>>
  /** How the kernel knows it: its user (the default), its cgroup, or not at all. */
  readonly identity?: 'user' | 'cgroup' | 'none'
  /** Where its process runs; its identity is then the container's address. */
  readonly container?: Container
  /** What its application sees of connections that are delivered to it. */
  readonly delivery?: Pick<
    NonNullable<ConfigInput['services']>[number],
    'deliverFrom' | 'proxyProtocol'
  >
  /** The numeric user it runs as, when its program needs one that exists; one of its own unless given. */
  readonly user?: number
}

/** Accepts connections, says who answers, then returns every byte. */
export const echo: Behavior = 'echo'

/** Says more than anybody wants to hear, and listens to nothing. */
export const endless: Behavior = 'endless'

/** Hands each accepted connection to the test, by {@link RunningService.accept}. */
export const manual: Behavior = 'manual'

/** A service that was declared; {@link Service.start} brings it to life. */
export class Service {
  readonly name: string
  readonly id: string
  readonly uid: number
  readonly host: Host
  readonly options: ServiceOptions
  private readonly mesh: Mesh

  constructor(mesh: Mesh, host: Host, name: string, options: ServiceOptions & { user: number }) {
    this.mesh = mesh
    this.host = host
    this.name = name
    this.id = options.id ?? name
    this.uid = options.user
    this.options = options
  }

  /** How the catalog must know it; undefined for a pure caller. */
  get instance(): Instance | undefined {
    const { listens } = this.options
    return listens === undefined
      ? undefined
      : {
          service: this.name,
          id: this.id,
          host: this.host.name,
          ip: this.host.namespace.ip,
          port: listens,
        }
  }

  /** The cgroup that its processes are in, below the cgroup v2 root; undefined unless it is its identity. */
  get cgroup(): string | undefined {
    return this.options.identity === 'cgroup'
      ? `${this.mesh.cgroupName}/${this.host.name}-${this.id}`
      : undefined
  }

  /** Starts its process as its user, listening when it has a port, and makes it known to the catalog. */
  async start(behavior: Behavior = echo): Promise<RunningService> {
    const workload = await Workload.start({
      namespace: (this.options.container ?? this.host).namespace,
      uid: this.uid,
      service: this.name,
      instance: this.id,
      cgroup: await this.mesh.makeCgroup(this.cgroup),
    })
    const running = new RunningService(this.mesh, this, workload)
    this.mesh.own(workload)
    const { listens } = this.options
    if (listens !== undefined) await workload.listen('::', listens, behavior)
    await running.join()
    return running
  }

  /** Runs any program as the service, in place of {@link start}; the caller waits until it listens. */
  async run(
    argv: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): Promise<OwnedProcess> {
    const program = await this.spawn(argv, { env })
    await this.join()
    return program
  }

  /** Makes it known to the catalog, whether or not a process of it runs. */
  async join(): Promise<void> {
    const { instance } = this
    if (instance === undefined) return
    await this.mesh.catalog.join(instance)
    this.mesh.joined(instance)
  }

  /** Starts any program as the service, in its host, beside whatever else runs as it; it ends with the mesh. */
  async spawn(
    argv: readonly string[],
    options: Omit<ProcessOptions, 'name'> = {},
  ): Promise<OwnedProcess> {
    const program = await OwnedProcess.start(await this.asItself(argv), {
      name: this.id,
      ...options,
    })
    this.mesh.own(program)
    return program
  }

  /** Runs a command as the service, in its host, to its end. */
  async exec(
    argv: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): Promise<CommandResult> {
    return runCommand(await this.asItself(argv), { env })
  }

  private async asItself(argv: readonly string[]): Promise<readonly string[]> {
    const cgroup = await this.mesh.makeCgroup(this.cgroup)
    const enter = cgroup === undefined ? [] : enterCgroup(cgroup)
    const become = ['setpriv', `--reuid=${this.uid}`, `--regid=${this.uid}`, '--clear-groups', '--']
    const isAlone = this.mesh.options.users === 'one'
    return this.host.namespace.inside([...enter, ...(isAlone ? [] : become), ...argv])
  }
}

/** A service process that can be called and can call. */
export class RunningService {
  readonly service: Service
  readonly workload: Workload
  private readonly mesh: Mesh

  constructor(mesh: Mesh, service: Service, workload: Workload) {
    this.mesh = mesh
    this.service = service
    this.workload = workload
  }

  /**
   * Calls another service at its virtual address and returns who answered.
   * @throws WorkloadError with the code of whatever ended the connection instead.
   */
  async call(destination: string, family: 4 | 6 = 4): Promise<Answer> {
    return this.converse(await this.dial(destination, family))
  }

  /** Calls what listens on a local port, such as an explicit upstream. */
  async callPort(port: number): Promise<Answer> {
    return this.callAddress('127.0.0.1', port)
  }

  /** Calls an address as it is. */
  async callAddress(ip: string, port: number): Promise<Answer> {
    return this.converse(await this.workload.dial(ip, port))
  }

  /** Opens a connection to another service at its virtual address. */
  async dial(destination: string, family: 4 | 6 = 4): Promise<RemoteSocket> {
    const { ip, port } = await this.mesh.virtualAddress(destination, this.service.host, family)
    return this.workload.dial(ip, port)
  }

  /** The next connection to this service; it must have been started as {@link manual}. */
  accept(): Promise<RemoteSocket> {
    return this.workload.accept()
  }

  /** Opens a connection to another service and returns both of its ends. */
  async connectTo(destination: RunningService): Promise<readonly [RemoteSocket, RemoteSocket]> {
    const near = await this.dial(destination.service.name)
    // The first byte may be what carries the connection there.
    await near.write('>')
    const far = await destination.accept()
    const greeting = await far.read(1)
    if (greeting !== '>') throw new Error(`Wrong first byte: ${JSON.stringify(greeting)}`)
    return [near, far]
  }

  /** Makes it known to the catalog (again). */
  async join(): Promise<void> {
    await this.service.join()
  }

  /** Takes it from the catalog; the process goes on. */
  async leave(): Promise<void> {
    const { instance } = this.service
    if (instance === undefined) return
    await this.mesh.catalog.leave(instance)
    this.mesh.left(instance)
  }

  /** Ends its process with SIGKILL. */
  async kill(): Promise<Exit> {
    return this.workload.kill()
  }

  /** Asks who is there, as {@link echo} answers, and checks that the answer is for this question. */
  private async converse(socket: RemoteSocket): Promise<Answer> {
    const nonce = randomUUID()
    try {
      await socket.write(`${nonce}\n`)
      const answer = JSON.parse(await socket.readLine()) as Answer
      if (answer.nonce !== nonce) throw new Error(`Answer to another question: ${answer.nonce}`)
      await socket.end()
      const rest = await socket.readRest()
      if (rest.ending !== 'end' || rest.bytes !== 0)
        throw new Error(`Not a clean end after the answer: ${JSON.stringify(rest)}`)
      return answer
    } catch (error) {
      await socket.reset().catch(() => undefined)
      throw error
    }
  }
}
