/**
 * Hand-made TLS peers: what a Connect sidecar, a stranger or an impostor says to a tunnel port.
 *
 * Plain node:tls, none of the code under test; sockets are opened by a small script inside the namespace
 * (services/tls-peer.ts).
 */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'

import { within } from './eventually.ts'
import type { Namespace } from './network.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Answer } from './workload-protocol.ts'

const script = join(import.meta.dirname, 'services', 'tls-peer.ts')

/** The PEM files that a TLS peer speaks with. */
export interface PeerFiles {
  readonly certificate: string
  readonly key: string
}

/** How a call by TLS ended: an answer of an echo service, or what went wrong instead. */
export interface TlsOutcome {
  readonly answer: Answer | undefined
  readonly error: string | undefined
}

/** What a hand-made caller sends where. */
export interface TlsCall {
  readonly ip: string
  readonly port: number
  readonly serverName: string
  /** Folder written by `hostmesh ca issue`, for one service; no client certificate when undefined. */
  readonly certificates: string | undefined
  readonly alpn?: readonly string[]
}

/** Calls a tunnel port as a Connect sidecar would and asks the echo behind it who it is. */
export async function tlsCall(from: Namespace, call: TlsCall): Promise<TlsOutcome> {
  const files = call.certificates === undefined ? undefined : await peerFiles(call.certificates)
  const peer = await start(from, { mode: 'call', ...call, files })
  const outcome = new Promise<TlsOutcome>((resolve) => {
    peer.child.once('message', (message: TlsOutcome) => resolve(message))
    void peer.exited.then(() => resolve({ answer: undefined, error: peer.output }))
  })
  try {
    return await within(10_000, 'The outcome of a TLS call', outcome)
  } finally {
    await peer.kill()
  }
}

/** A TLS server that takes any caller, and counts what it is given. */
export interface TlsPeer extends AsyncDisposable {
  /** Handshakes begun so far, finished or not. */
  readonly handshakes: number
  /** All plaintext it has been given. */
  readonly received: string
}

/** Listens on a port with the first certificate of a folder. */
export async function startTlsPeer(
  on: Namespace,
  options: { readonly port: number; readonly certificates: string },
): Promise<TlsPeer> {
  const files = await peerFiles(options.certificates)
  const peer = await start(on, { mode: 'listen', port: options.port, files })
  let handshakes = 0
  let received = ''
  const listening = new Promise<void>((resolve) => {
    peer.child.on('message', (message: { event: string; text?: string }) => {
      if (message.event === 'listening') resolve()
      else if (message.event === 'connection') handshakes += 1
      else received += message.text ?? ''
    })
  })
  await within(10_000, 'The start of a TLS server', listening)
  return {
    get handshakes() {
      return handshakes
    },
    get received() {
      return received
    },
    [Symbol.asyncDispose]: async () => {
      await peer.kill()
    },
  }
}

/** A Connect peer that says `half of what` and is then cut off, by a FIN without close_notify. */
export interface CutPeer extends AsyncDisposable {
  cut(): void
}

/** Calls as {@link tlsCall} does. */
export async function startCutCaller(from: Namespace, call: TlsCall): Promise<CutPeer> {
  const files = call.certificates === undefined ? undefined : await peerFiles(call.certificates)
  return cutPeer(await start(from, { mode: 'call-and-cut', ...call, files }))
}

/** Listens as {@link startTlsPeer} does, and answers the first bytes of its caller. */
export async function startCutServer(
  on: Namespace,
  options: { readonly port: number; readonly certificates: string },
): Promise<CutPeer> {
  const files = await peerFiles(options.certificates)
  const peer = await start(on, { mode: 'answer-and-cut', port: options.port, files })
  const listening = new Promise<void>((resolve) => peer.child.once('message', () => resolve()))
  await within(10_000, 'The start of a TLS server', listening)
  return cutPeer(peer)
}

function cutPeer(peer: OwnedProcess): CutPeer {
  return {
    cut: () => void peer.child.send('cut'),
    [Symbol.asyncDispose]: async () => {
      await peer.kill()
    },
  }
}

function start(namespace: Namespace, task: object): Promise<OwnedProcess> {
  return OwnedProcess.start(namespace.inside([process.execPath, script, JSON.stringify(task)]), {
    name: 'TLS peer',
    ipc: true,
  })
}

/** The certificate and the key of the first service in a folder of `hostmesh ca issue`. */
export async function peerFiles(folder: string): Promise<PeerFiles> {
  const key = (await readdir(folder)).toSorted().find((name) => name.endsWith('.key'))
  if (key === undefined) throw new Error(`No key in ${folder}`)
  return { key: join(folder, key), certificate: join(folder, key.replace(/key$/, 'pem')) }
}
