/**
 * A container as capture sees one: a network namespace behind a bridge on a host, which forwards for it.
 *
 * ```
 *   container 172.30.0.N  eth0 -- veth --  hmbr0 172.30.0.1  host, forwarding
 * ```
 *
 * Attach containers before mesh.up(): rules and routes are compared with those from before the daemon.
 */
import type { Host } from './host.ts'
import { Namespace } from './network.ts'
import { mustRun, runCommand } from './owned-process.ts'

const BRIDGE = 'hmbr0'

/** One container's network; processes are started in {@link Container.namespace}. */
export class Container implements AsyncDisposable {
  readonly namespace: Namespace
  readonly ip: string

  private constructor(namespace: Namespace, ip: string) {
    this.namespace = namespace
    this.ip = ip
  }

  /** Puts a container on the host's bridge; `number` is the last part of its address, 2 or more. */
  static async attach(host: Host, number: number): Promise<Container> {
    const hostName = host.namespace.name
    // The name carries the host's, so that what a killed run leaves behind is found with it.
    const namespace = new Namespace(`${hostName}-box${number}`, number)
    const container = new Container(namespace, `172.30.0.${number}`)
    const inHost = (command: string): Promise<string> =>
      mustRun(['ip', '-n', hostName, ...command.split(' ')])
    const inside = (command: string): Promise<string> =>
      mustRun(['ip', '-n', namespace.name, ...command.split(' ')])
    if ((await runCommand(['ip', '-n', hostName, 'link', 'show', BRIDGE])).code !== 0) {
      await inHost(`link add ${BRIDGE} type bridge`)
      await inHost(`addr add 172.30.0.1/24 dev ${BRIDGE}`)
      await inHost(`link set ${BRIDGE} up`)
      await host.namespace.run('sysctl', '-qw', 'net.ipv4.ip_forward=1')
    }
    await mustRun(['ip', 'netns', 'add', namespace.name])
    try {
      await inHost(`link add box${number} type veth peer name eth0 netns ${namespace.name}`)
      await inHost(`link set box${number} master ${BRIDGE} up`)
      await inside('link set lo up')
      await inside('link set eth0 up')
      await inside(`addr add ${container.ip}/24 dev eth0`)
      await inside('route add default via 172.30.0.1')
    } catch (error) {
      await container[Symbol.asyncDispose]()
      throw error
    }
    return container
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await runCommand(['ip', 'netns', 'delete', this.namespace.name])
  }
}
