/**
 * Each connection is attributed by itself: a port that another workload gave up by a reset a moment ago says nothing
 * about who uses it now. The same claim for each backend, and for both sides that may have reset.
 */
import assert from 'node:assert/strict'
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { TestContext } from 'node:test'
import { createCapture } from '../../src/controlplane/capture/capture.ts'
import { createCommandRunner, type RunCommand } from '../../src/controlplane/capture/command.ts'
import type { CapturePlan } from '../../src/controlplane/capture/rules.ts'
import type { BackendKind } from '../../src/model/capture-backend.ts'
import type { WorkloadSelector } from '../../src/model/service.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { insideAs, startListener, TestCgroup } from './capture-host.ts'
import type { Landings, Order } from './port-caller.ts'

/** Reused ports of each kind of identity and family. */
const REUSED = 10_000
const BATCH = 2_500
const FIRST_PORT = 20_000
const INSTANCE_PORT = 9_090
const PORTS = [15_100, 15_101, 15_102, 15_103]

/** A caller, and how the host recognizes it: a container has an address of each family. */
interface Kind {
  readonly host: Namespace
  readonly uid: number
  readonly cgroup: TestCgroup | undefined
  readonly selectors: readonly WorkloadSelector[]
}

/** The capture port of a caller; that of a container's IPv6 address is another one. */
function portOf(caller: number, family: number): number {
  return PORTS[caller + 2 * family] ?? 0
}

class PortCaller implements AsyncDisposable {
  readonly #child: ChildProcessWithoutNullStreams
  readonly #lines: AsyncIterator<string>

  constructor({ host, uid, cgroup }: Kind) {
    const script = join(import.meta.dirname, 'port-caller.ts')
    const run = insideAs(host, uid, [process.execPath, script])
    const enter = cgroup === undefined ? ':' : `echo $$ > ${cgroup.folder}/cgroup.procs`
    const shell = `${enter.replaceAll('\\', '\\\\')} && exec "$@"`
    this.#child = spawn('sh', ['-c', shell, 'sh', ...run])
    this.#child.stderr.pipe(process.stderr)
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
  }

  async call(order: Order): Promise<Landings> {
    this.#child.stdin.write(`${JSON.stringify(order)}\n`)
    const { value } = await this.#lines.next()
    return JSON.parse(String(value)) as Landings
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end()
    if (this.#child.exitCode === null) await once(this.#child, 'exit')
  }
}

/** What is tried. */
export interface Reuse {
  readonly backend: BackendKind
  /** Whether the data plane resets a connection, or its caller. */
  readonly isDenied: boolean
}

/** Uses each of ten thousand ports of each kind of identity twice, by one caller and at once by another. */
export async function reusePorts(t: TestContext, { backend, isDenied }: Reuse): Promise<void> {
  await using network = await Network.create(['a', 'b', 'c', 'd'])
  const [a, b, c, d] = ['a', 'b', 'c', 'd'].map((name) => network.host(name)) as [
    Namespace,
    Namespace,
    Namespace,
    Namespace,
  ]
  // Two containers as the host sees them: it forwards for their addresses.
  await a.run('sysctl', '-qw', 'net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1')
  for (const box of [c, d])
    for (const [to, via] of [
      ['default', a.ip],
      [b.ip, a.ip],
      ['default', a.ip6],
      [b.ip6, a.ip6],
    ] as const)
      await box.run('ip', via.includes(':') ? '-6' : '-4', 'route', 'replace', to, 'via', via)
  const runner = createCommandRunner()
  const run: RunCommand = (tool, args, input) => {
    const [command = '', ...rest] = a.inside([tool, ...args])
    return runner(command, rest, input)
  }
  await a.run('sysctl', '-qw', 'net.ipv4.ip_local_port_range=40000 60000')
  const listener = await startListener(
    a,
    PORTS,
    backend === 'nftables' ? 'transparent' : isDenied ? 'denying' : 'redirect',
  )
  using one = await TestCgroup.create('one.service')
  using other = await TestCgroup.create('other.service')
  const plan: CapturePlan = {
    workloads: [],
    virtualRange: '240.0.0.0/4',
    virtualRange6: 'fdc6:6d65:7368::/64',
    daemonUid: 2_900,
    ownPorts: [],
  }
  const user = (uid: number): Kind => ({
    host: a,
    uid,
    cgroup: undefined,
    selectors: [{ kind: 'user', user: String(uid) }],
  })
  const unit = (cgroup: TestCgroup): Kind => ({
    host: a,
    uid: 2_003,
    cgroup,
    selectors: [{ kind: 'cgroup', path: cgroup.path }],
  })
  const container = (host: Namespace): Kind => ({
    host,
    uid: 2_003,
    cgroup: undefined,
    selectors: [host.ip, host.ip6].map((ip) => ({ kind: 'sourceAddress', ip })),
  })
  const kinds: Record<string, readonly [Kind, Kind]> = {
    user: [user(2_001), user(2_002)],
    cgroup: [unit(one), unit(other)],
    container: [container(c), container(d)],
  }
  await using capture = createCapture({ run, backend })
  await capture.updateAddresses({
    instances: [b.ip, b.ip6].map((ip) => ({ ip, port: INSTANCE_PORT })),
    permitted: [],
  })
  for (const [kind, [first, second]] of Object.entries(kinds)) {
    await capture.apply({
      ...plan,
      workloads: [first, second].flatMap(({ selectors }, index) =>
        selectors.map((selector, family) => ({ selector, capturePort: portOf(index, family) })),
      ),
    })
    await using callerOne = new PortCaller(first)
    await using callerOther = new PortCaller(second)
    for (const [what, ip, port] of [
      ['a virtual IPv4', '240.7.7.7', 80],
      ['a virtual IPv6', 'fdc6:6d65:7368::7', 80],
      ['an instance IPv4', b.ip, INSTANCE_PORT],
      ['an instance IPv6', b.ip6, INSTANCE_PORT],
    ] as const)
      await t.test(`${kind}, to ${what} address`, async () => {
        // Half of the ports to virtual addresses, half to instances.
        for (let done = 0; done < REUSED / 2; done += BATCH) {
          const order = { ip, port, first: FIRST_PORT + done, count: BATCH, isDenied }
          const family = kind === 'container' && ip.includes(':') ? 1 : 0
          assert.deepEqual(await callerOne.call(order), { [portOf(0, family)]: BATCH })
          assert.deepEqual(await callerOther.call(order), { [portOf(1, family)]: BATCH })
        }
      })
  }
  await listener.stop()
}
