/**
 * A peer with a valid certificate that does one wrong thing as fast as it can (services/vicious-peer.ts).
 */
import { join } from 'node:path'
import { within } from './eventually.ts'
import type { Namespace } from './network.ts'
import { OwnedProcess } from './owned-process.ts'
import { type PeerFiles, peerFiles } from './tls-peer.ts'

const script = join(import.meta.dirname, 'services', 'vicious-peer.ts')

/** What it does. */
export type ViciousMode =
  /** Opens streams and sends one byte of their preface. */
  | 'slots'
  /** Opens streams and resets them at once. */
  | 'openreset'
  /** Opens streams to a service that denies it. */
  | 'opendenied'
  /** Opens streams with nonsense for a preface. */
  | 'badpreface'
  /** Asks for much on thousands of streams and gives no credit. */
  | 'zerowindow'
  /** Opens sessions and uses none. */
  | 'sessions'
  /** With each identity: keeps thousands of streams in their preface, below the rate of those that come to nothing. */
  | 'renewedslots'
  /** With each identity: gives credit of one byte. */
  | 'tinycredit'
  /** With each identity: keeps as many sessions as one may have, and uses none. */
  | 'idle'

/** What the script is given. */
export interface ViciousTask {
  readonly mode: ViciousMode
  readonly ip: string
  readonly port: number
  readonly serverName: string
  /** Of one identity each. */
  readonly files: readonly PeerFiles[]
  readonly forMs: number
}

/** What became of it. */
export interface ViciousOutcome {
  /** Sessions that stood. */
  sessions: number
  /** Streams opened. */
  opened: number
  /** Streams that were reset. */
  refused: number
  /** Sessions that were ended, or refused at the handshake. */
  thrownOut: number
  /** Modes `sessions` and `idle`: sessions that were open at the end. */
  most: number
}

/** Lets one loose, with folders written by `hostmesh ca issue` for one service each; resolves when it is done. */
export async function letLoose(
  from: Namespace,
  task: Omit<ViciousTask, 'files'> & { readonly certificates: readonly string[] },
): Promise<ViciousOutcome> {
  const { certificates, ...rest } = task
  const whole: ViciousTask = { ...rest, files: await Promise.all(certificates.map(peerFiles)) }
  const peer = await OwnedProcess.start(
    from.inside([process.execPath, script, JSON.stringify(whole)]),
    { name: 'vicious peer', ipc: true },
  )
  const outcome = new Promise<ViciousOutcome>((resolve, reject) => {
    peer.child.once('message', (message: ViciousOutcome) => resolve(message))
    void peer.exited.then(() => reject(new Error(`The vicious peer ended: ${peer.output}`)))
  })
  try {
    return await within(task.forMs + 60_000, 'The outcome of a vicious peer', outcome)
  } finally {
    await peer.kill()
  }
}
