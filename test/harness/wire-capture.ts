/**
 * Listening on the wire between the hosts, as an attacker on the same switch would.
 *
 * "Not seen" only means something when the capture was running: {@link WireCapture.sees} waits for what must
 * be there, and a test that claims absence first lets a marker of its own cross and waits for that.
 */
import { randomUUID } from 'node:crypto'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { eventually } from './eventually.ts'
import type { Namespace } from './network.ts'
import { OwnedProcess } from './owned-process.ts'

/** A running packet capture on a bridge. Disposing it stops it and removes its file. */
export class WireCapture implements AsyncDisposable {
  private readonly tcpdump: OwnedProcess
  private readonly folder: string

  private constructor(tcpdump: OwnedProcess, folder: string) {
    this.tcpdump = tcpdump
    this.folder = folder
  }

  /** Starts to record all that crosses the bridge `device` of `wire`; returns once it is recording. */
  static async start(wire: Namespace, device = 'br0'): Promise<WireCapture> {
    const folder = await mkdtemp(join(tmpdir(), 'hmt-wire-'))
    const tcpdump = await OwnedProcess.start(
      wire.inside(
        // -Z root: the file lies in a folder that only we can enter.
        ['tcpdump', '-i', device, '-n', '-U', '--immediate-mode', '-s', '0', '-Z', 'root'].concat([
          '-w',
          join(folder, 'wire.pcap'),
        ]),
      ),
      { name: 'tcpdump' },
    )
    const capture = new WireCapture(tcpdump, folder)
    try {
      await eventually(() => {
        if (!tcpdump.output.includes('listening on')) throw new Error(tcpdump.output)
      })
    } catch (error) {
      await capture[Symbol.asyncDispose]()
      throw error
    }
    return capture
  }

  /** All bytes recorded so far, packet headers included. */
  bytes(): Promise<Buffer> {
    return readFile(join(this.folder, 'wire.pcap'))
  }

  /** Whether `text` was in a packet up to now. */
  async has(text: string): Promise<boolean> {
    return (await this.bytes()).includes(text)
  }

  /** Waits until `text` has crossed the wire. @throws when it has not within the deadline. */
  async sees(text: string): Promise<void> {
    await eventually(async () => {
      if (!(await this.has(text))) throw new Error(`"${text}" was not seen on the wire`)
    })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.tcpdump.hasExited) await this.tcpdump.stop()
    await rm(this.folder, { recursive: true, force: true })
  }
}

/** Text that occurs nowhere else. */
export function canary(): string {
  return `canary-${randomUUID()}`
}
