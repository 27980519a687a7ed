/**
 * Hosts as network namespaces on one bridge, with IPv4 and IPv6, as on one switch.
 *
 * ```
 *   hmt-<pid>-<n>-a        hmt-<pid>-<n>-b
 *   10.88.0.1 fd88::1      10.88.0.2 fd88::2
 *          eth0                  eth0
 *            \                    /
 *             br0 10.88.0.254 fd88::fe      hmt-<pid>-<n>-net
 * ```
 *
 * The names carry the pid of the process that made them: what a killed run left behind is removed by
 * the next one, together with the processes inside. Nothing outside of these namespaces is touched.
 */
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'

import { mustRun, onEarlyExit, runCommand } from './owned-process.ts'

const PREFIX = 'hmt'

let networksMade = 0

/** One network namespace. */
export class Namespace {
  readonly name: string
  readonly ip: string
  readonly ip6: string

  constructor(name: string, number: number) {
    this.name = name
    this.ip = `10.88.0.${number}`
    this.ip6 = `fd88::${number.toString(16)}`
  }

  get path(): string {
    return `/run/netns/${this.name}`
  }

  /** `argv` as a command line that runs in this namespace. */
  inside(argv: readonly string[]): readonly string[] {
    return ['nsenter', `--net=${this.path}`, '--', ...argv]
  }

  /** Runs a command here. @throws when it fails. */
  async run(...argv: string[]): Promise<string> {
    return mustRun(this.inside(argv))
  }

  /** The processes that run here, other than ours. */
  async pids(): Promise<readonly number[]> {
    const listed = await mustRun(['ip', 'netns', 'pids', this.name])
    return listed.split('\n').filter(Boolean).map(Number)
  }

  /**
   * Everything that capture may change in the kernel: rules of both families without their counters,
   * sets, routing rules and routes; to compare before and after.
   */
  async rules(): Promise<string> {
    const saved = await Promise.all([
      this.run('iptables-save'),
      this.run('ip6tables-save'),
      this.run('ipset', 'save'),
      this.run('nft', 'list', 'tables', 'inet'),
      this.run('ip', 'rule'),
      this.run('ip', '-6', 'rule'),
      this.run('ip', 'route', 'show', 'table', 'all'),
      this.run('ip', '-6', 'route', 'show', 'table', 'all'),
    ])
    return saved
      .flatMap((text) => text.split('\n'))
      .filter((line) => line !== '' && !line.startsWith('#') && !isIncidental(line))
      .join('\n')
  }
}

/**
 * What differs by itself: a table that was used once and is empty again prints its frame, one that was
 * never used does not; and the kernel adds routes of its own as interfaces come up.
 */
function isIncidental(line: string): boolean {
  return (
    / proto kernel /.test(line) ||
    // Held by a daemon that runs; it goes with it.
    /^table inet hostmesh_(held|ports)_\d/.test(line) ||
    /^(\*\w+|COMMIT|:(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING) .*)$/.test(line)
  )
}

/** A switch and the hosts on it. Disposing it removes all of them. */
export class Network implements AsyncDisposable {
  /** Where the bridge is: the wire, as seen by someone who can listen to it. */
  readonly wire: Namespace
  private readonly namespaces: ReadonlyMap<string, Namespace>
  private readonly holders = new Map<string, Namespace>()
  private readonly forgetExit: () => void

  private constructor(wire: Namespace, namespaces: ReadonlyMap<string, Namespace>) {
    this.wire = wire
    this.namespaces = namespaces
    this.forgetExit = onEarlyExit(() => {
      for (const { name } of this.all()) spawnSync('ip', ['netns', 'delete', name])
    })
  }

  /** Builds a switch with these hosts, numbered from 1 in this order. */
  static async create(hosts: readonly string[]): Promise<Network> {
    await removeStale()
    networksMade += 1
    const prefix = `${PREFIX}-${process.pid}-${networksMade}`
    const wire = new Namespace(`${prefix}-net`, 254)
    const namespaces = new Map(
      hosts.map((host, index) => [host, new Namespace(`${prefix}-${host}`, index + 1)]),
    )
    const network = new Network(wire, namespaces)
    try {
      for (const { name } of network.all()) await mustRun(['ip', 'netns', 'add', name])
      await network.connect()
    } catch (error) {
      await network[Symbol.asyncDispose]()
      throw error
    }
    return network
  }

  host(name: string): Namespace {
    const namespace = this.namespaces.get(name)
    if (namespace === undefined) throw new Error(`No host '${name}' on this network`)
    return namespace
  }

  /** Exchanges the addresses of two hosts: the wrong peer at the right address. Again, and all is well. */
  async swapAddresses(one: string, other: string): Promise<void> {
    const [first, second] = [this.holderOf(one), this.holderOf(other)]
    for (const { name } of [first, second]) await ip(name, 'addr flush dev eth0 scope global')
    await setAddresses(second.name, this.host(one))
    await setAddresses(first.name, this.host(other))
    this.holders.set(one, second)
    this.holders.set(other, first)
    for (const { name } of this.all()) await ip(name, 'neigh flush all')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { name } of this.all()) await runCommand(['ip', 'netns', 'delete', name])
    this.forgetExit()
  }

  /** The namespace that has a host's address now. */
  private holderOf(host: string): Namespace {
    return this.holders.get(host) ?? this.host(host)
  }

  private all(): readonly Namespace[] {
    return [...this.namespaces.values(), this.wire]
  }

  private async connect(): Promise<void> {
    const { wire } = this
    await ip(wire.name, 'link add br0 type bridge', 'link set br0 up', 'link set lo up')
    await ip(wire.name, `addr add ${wire.ip}/24 dev br0`, `addr add ${wire.ip6}/64 dev br0 nodad`)
    let port = 0
    for (const host of this.namespaces.values()) {
      port += 1
      await ip(
        wire.name,
        `link add port${port} type veth peer name eth0 netns ${host.name}`,
        `link set port${port} master br0 up`,
      )
      await ip(host.name, 'link set lo up', 'link set eth0 up')
      await setAddresses(host.name, host)
    }
  }
}

/** The default routes make unassigned addresses, such as virtual ones, routable as on a real host. */
async function setAddresses(namespace: string, to: Namespace): Promise<void> {
  await ip(
    namespace,
    `addr add ${to.ip}/24 dev eth0`,
    `addr add ${to.ip6}/64 dev eth0 nodad`,
    'route replace default via 10.88.0.254',
    '-6 route replace default via fd88::fe',
  )
}

async function ip(namespace: string, ...commands: string[]): Promise<void> {
  for (const command of commands) await mustRun(['ip', '-n', namespace, ...command.split(' ')])
}

async function removeStale(): Promise<void> {
  const listed = await runCommand(['ip', 'netns', 'list'])
  for (const line of listed.stdout.split('\n')) {
    const match = new RegExp(`^(${PREFIX}-(\\d+)-\\S+)`).exec(line)
    const [, name, pid] = match ?? []
    if (name === undefined || existsSync(`/proc/${pid}`)) continue
    const inside = await runCommand(['ip', 'netns', 'pids', name])
    for (const left of inside.stdout.split('\n').filter(Boolean)) killQuietly(Number(left))
    await runCommand(['ip', 'netns', 'delete', name])
  }
}

function killQuietly(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself.
  }
}
