/**
 * Whether plaintext leaves a host, watched over a whole test: daemons may stop, start and be replaced meanwhile.
 *
 * ```ts
 * await using leaks = await watchForPlaintext(host.namespace, calls.canary)
 * …
 * await leaks.assertNone()
 * ```
 *
 * It hears what really passes the devices of a network namespace, after the rules of the host on the way out and
 * before them on the way in; loopback is left out, and so is every device in `except` (the inner side of a
 * container's bridge). Nothing is lost unnoticed: every question waits until a packet of our own was heard, and
 * fails when the kernel dropped any. A machine of the fleet lives in a namespace that outlives it, and is watched
 * from outside, its boot included.
 */
import { randomUUID } from 'node:crypto'

import { eventually, within } from './eventually.ts'
import type { Namespace } from './network.ts'
import { mustRun, OwnedProcess } from './owned-process.ts'
import { type Packet, PacketReader } from './packet-reader.ts'

/** One packet, or two in a row, with the canary in it. */
export interface Leak {
  readonly device: string
  readonly direction: 'in' | 'out'
  /** `10.88.0.1:40000 > 10.88.0.2:5432` */
  readonly flow: string
  /** What followed the canary: the number of the connection that carried it (steady-calls.ts). */
  readonly serial: number | undefined
  readonly atMs: number
}

/** A running watch. Disposing it stops it. */
export interface PlaintextWatch extends AsyncDisposable {
  /** Connections whose canary was seen up to now: each counts once, however often its bytes were sent. */
  count(): Promise<number>
  /** Every packet with a canary up to now, in order. */
  leaks(): Promise<readonly Leak[]>
  /** @throws with the first leaks, when there are any. */
  assertNone(): Promise<void>
}

/** How to watch. */
export interface WatchOptions {
  /** Devices where plaintext is in order. */
  readonly except?: readonly string[]
}

/** The port that a packet of our own goes to; only loopback carries it. */
const MARKER_PORT = 9
const LOOPBACK_INDEX = 1

/** What the kernel keeps for us until we have read it, in KiB. */
const BUFFER_KIB = 65_536

/** Leaks that an error shows. */
const SHOWN = 5

/** Starts to watch the devices of a namespace, also those that come later; returns once it hears. */
export async function watchForPlaintext(
  on: Namespace,
  canary: string,
  options: WatchOptions = {},
): Promise<PlaintextWatch> {
  const watch = new Watch(on, canary, options.except ?? [])
  await watch.start()
  return watch
}

class Watch implements PlaintextWatch {
  private readonly namespace: Namespace
  private readonly search: CanarySearch
  private readonly except: readonly string[]
  private readonly devices = new Map<number, string>()
  private readonly seen: { readonly packet: Packet; readonly serial: number | undefined }[] = []
  private readonly markers = new Map<string, () => void>()
  private tcpdump: OwnedProcess | undefined
  private trouble: Error | undefined

  constructor(namespace: Namespace, canary: string, except: readonly string[]) {
    this.namespace = namespace
    this.search = new CanarySearch(canary)
    this.except = except
  }

  async start(): Promise<void> {
    const reader = new PacketReader((packet) => this.hear(packet))
    const tcpdump = await OwnedProcess.start(
      // -Z root: it would give up its rights, and with them the namespace.
      this.namespace.inside(
        `tcpdump -i any -y LINUX_SLL2 -n -U --immediate-mode -s 0 -B ${BUFFER_KIB} -Z root -w -`
          .split(' ')
          .concat(`not ifindex ${LOOPBACK_INDEX} or (udp and dst port ${MARKER_PORT})`),
      ),
      {
        name: 'tcpdump',
        onOutput: (chunk) => {
          try {
            reader.push(chunk)
          } catch (error) {
            this.trouble ??= error instanceof Error ? error : new Error(String(error))
          }
        },
      },
    )
    this.tcpdump = tcpdump
    try {
      await eventually(() => {
        if (!tcpdump.output.includes('listening on')) throw new Error(tcpdump.output)
      })
      await this.catchUp()
    } catch (error) {
      await this[Symbol.asyncDispose]()
      throw error
    }
  }

  async count(): Promise<number> {
    const leaks = await this.leaks()
    return new Set(leaks.map(({ serial, flow }) => serial ?? flow)).size
  }

  async leaks(): Promise<readonly Leak[]> {
    await this.catchUp()
    await this.nameDevices()
    return this.seen.flatMap(({ packet, serial }) => {
      const device = this.devices.get(packet.deviceIndex) ?? `device ${packet.deviceIndex}`
      if (this.except.includes(device)) return []
      const direction = packet.isOutgoing ? 'out' : 'in'
      return [{ device, direction, flow: packet.flow, serial, atMs: packet.atMs }]
    })
  }

  async assertNone(): Promise<void> {
    const leaks = await this.leaks()
    if (leaks.length === 0) return
    const shown = leaks
      .slice(0, SHOWN)
      .map(
        ({ device, direction, flow, serial, atMs }) =>
          `  ${new Date(atMs).toISOString()} ${direction} ${device} ${flow}, connection ${serial ?? 'unknown'}`,
      )
    throw new Error(
      `Plaintext of ${await this.count()} connections on the wire, ${leaks.length} packets:\n${shown.join('\n')}`,
    )
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.tcpdump?.hasExited === false) await this.tcpdump.stop()
  }

  private hear(packet: Packet): void {
    if (packet.deviceIndex === LOOPBACK_INDEX) {
      const text = packet.payload.toString('latin1').trim()
      this.markers.get(text)?.()
      return
    }
    for (const serial of this.search.find(packet)) this.seen.push({ packet, serial })
  }

  /** Waits until everything that was sent before has been heard. @throws when something was lost. */
  private async catchUp(): Promise<void> {
    const { tcpdump } = this
    if (tcpdump === undefined || tcpdump.hasExited)
      throw new Error(`Nobody watches for plaintext: tcpdump has ended: ${tcpdump?.output ?? ''}`)
    const marker = randomUUID()
    const heard = new Promise<void>((resolve) => this.markers.set(marker, resolve))
    await this.namespace.run('bash', '-c', `echo ${marker} >/dev/udp/127.0.0.1/${MARKER_PORT}`)
    await within(10_000, 'A packet of our own is heard', heard)
    this.markers.delete(marker)
    await this.assertNothingLost(tcpdump)
    if (this.trouble !== undefined) throw this.trouble
  }

  private async assertNothingLost(tcpdump: OwnedProcess): Promise<void> {
    const before = tcpdump.output.length
    // tcpdump says how it fares.
    tcpdump.signal('SIGUSR1')
    await eventually(() => {
      const lost = /(\d+) packets? dropped by kernel/.exec(tcpdump.output.slice(before))?.[1]
      if (lost === undefined) throw new Error(`tcpdump says nothing: ${tcpdump.output}`)
      if (lost !== '0') this.trouble ??= new Error(`The capture has lost ${lost} packets`)
    })
  }

  private async nameDevices(): Promise<void> {
    const listed = await mustRun(['ip', '-n', this.namespace.name, '-o', 'link'])
    for (const [, index, name = ''] of listed.matchAll(/^(\d+): ([^:@]+)/gm))
      this.devices.set(Number(index), name)
  }
}

/** Finds a canary in packets, also one that two packets of a flow share. */
export class CanarySearch {
  private readonly canary: Buffer
  /** The ends of what flows have carried, for as long as something of a canary may be in them. */
  private readonly ends = new Map<string, Buffer>()

  constructor(canary: string) {
    this.canary = Buffer.from(canary, 'latin1')
  }

  /** The serial number after each canary that this packet completes; undefined where there is none. */
  find({ flow, payload }: Pick<Packet, 'flow' | 'payload'>): (number | undefined)[] {
    if (payload.length === 0) return []
    const before = this.ends.get(flow)
    const bytes = before === undefined ? payload : Buffer.concat([before, payload])
    const found: (number | undefined)[] = []
    let at = bytes.indexOf(this.canary)
    let searchedTo = 0
    while (at !== -1) {
      searchedTo = at + this.canary.length
      const digits = /^-(\d+)/.exec(bytes.toString('latin1', searchedTo, searchedTo + 16))?.[1]
      found.push(digits === undefined ? undefined : Number(digits))
      at = bytes.indexOf(this.canary, searchedTo)
    }
    const keptFrom = Math.max(searchedTo, bytes.length - this.canary.length + 1)
    const end = bytes.subarray(keptFrom)
    if (end.length > 0 && this.mayBegin(end)) this.ends.set(flow, Buffer.from(end))
    else this.ends.delete(flow)
    return found
  }

  /** Whether a canary may begin in these last bytes. */
  private mayBegin(end: Buffer): boolean {
    for (let from = 0; from < end.length; from += 1)
      if (end.subarray(from).equals(this.canary.subarray(0, end.length - from))) return true
    return false
  }
}
