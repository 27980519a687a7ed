/**
 * A wire between one host and the switch that loses, doubles, delays and reorders frames, or swallows big ones.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from './eventually.ts'
import type { Mesh } from './mesh.ts'
import { OwnedProcess } from './owned-process.ts'

const script = join(import.meta.dirname, 'services/bad-wire.py')

/** What becomes of frames; what is left out stays as it is. At first nothing happens to them. */
export interface WireOrder {
  /** Parts of one. */
  readonly loss?: number
  readonly duplicate?: number
  readonly delayMs?: number
  readonly jitterMs?: number
  /** Frames beyond this are dropped, and nobody is told. */
  readonly maxBytes?: number
}

/** What was done to frames so far. */
export interface WireReport {
  readonly carried: number
  readonly lost: number
  readonly duplicated: number
  readonly overtaken: number
  readonly tooBig: number
}

/** Sender offloads would put frames of 64 KiB without checksums on the wire. SIOCETHTOOL, because hosts may lack ethtool. */
const PLAIN_FRAMES = `
import fcntl, socket, struct, array, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for name in sys.argv[1:]:
    for command in (0x17, 0x1f, 0x24, 0x2c, 0x15):  # transmit checksums, TSO, GSO, GRO, receive checksums
        value = array.array('B', struct.pack('II', command, 0))
        try: fcntl.ioctl(s, 0x8946, struct.pack('16sP', name.encode(), value.buffer_info()[0]))
        except OSError as error: assert error.errno == 95, (name, command, error)
`

/** The wire of a host, made bad. Disposing it cuts the host off. */
export class BadWire implements AsyncDisposable {
  private readonly process: OwnedProcess
  private readonly orders: string

  private constructor(process: OwnedProcess, orders: string) {
    this.process = process
    this.orders = orders
  }

  /** The wire of the host that was named at this place, from 1, when the mesh was started. */
  static async of(mesh: Mesh, port: number): Promise<BadWire> {
    const { wire } = mesh.network
    const host = mesh.host(mesh.options.hosts[port - 1] ?? '').namespace
    const orders = join(mesh.folder, 'bad-wire.json')
    await writeFile(orders, '{}')
    const inWire = (command: string): Promise<string> => wire.run(...command.split(' '))
    await inWire('ip link add bad1 type veth peer name bad2')
    for (const command of [
      'bad1 master br0 up',
      'bad2 up',
      `port${port} nomaster`,
      'bad1 mtu 1500',
    ])
      await inWire(`ip link set ${command}`)
    await wire.run('/usr/bin/python3', '-c', PLAIN_FRAMES, 'bad1', 'bad2', `port${port}`, 'port1')
    await host.run('/usr/bin/python3', '-c', PLAIN_FRAMES, 'eth0')
    const process = await OwnedProcess.start(
      wire.inside(['/usr/bin/python3', script, `port${port}`, 'bad2', orders]),
      { name: 'bad wire' },
    )
    const made = new BadWire(process, orders)
    await eventually(() => {
      if (made.reports().length === 0) throw new Error(process.output)
    })
    return made
  }

  /** From now on frames are treated so. Returns what was done to them before. */
  async be(order: WireOrder): Promise<WireReport> {
    const before = this.reports().length
    await writeFile(this.orders, JSON.stringify(order))
    this.process.child.kill('SIGHUP')
    return eventually(() => {
      const report = this.reports()[before]
      if (report === undefined) throw new Error(this.process.output)
      return report
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.process[Symbol.asyncDispose]()
  }

  private reports(): readonly WireReport[] {
    return this.process.output
      .split('\n')
      .filter((line) => line.startsWith('{') && line.endsWith('}'))
      .map((line) => JSON.parse(line) as WireReport)
  }
}
