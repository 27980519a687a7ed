/**
 * One daemon in a network namespace writes rules of the kernel: two would take them from each other for ever.
 *
 * The lock is an abstract Unix socket, of which each network namespace has its own and which is free the moment its holder
 * ends. Any local user may take such a name, and is not to keep the daemon from starting: only a holder that could write
 * rules counts, by the credentials that the kernel tells of it.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { errorCode, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { requireNativeCalls, SOL_SOCKET } from '../lib/native.ts'
import { descriptorOf } from '../lib/node-internals.ts'

/** The zero in front makes it abstract: no file. */
const NAME = '\0hostmesh-kernel-rules'

/** A daemon that was killed takes a moment to be gone; one that hands over lets go at once. Milliseconds. */
const PATIENCE_MS = 3_000
const AGAIN_MS = 50

const SO_PEERCRED = 17
const CREDENTIAL_NUMBERS = 3
const CAP_NET_ADMIN = 1n << 12n

/** Who listens at a Unix socket, as the kernel knows it. */
export interface Holder {
  readonly pid: number
  readonly uid: number
}

/**
 * Holds the lock until it is disposed or the process ends. Undefined, and said in the log, when somebody has the name who
 * cannot be a daemon. @throws MeshError HM_CAPTURE_HELD when another daemon holds it
 */
export async function holdKernelRules(
  log: Log,
  options: { readonly name?: string; readonly patienceMs?: number } = {},
): Promise<AsyncDisposable | undefined> {
  const { name = NAME, patienceMs = PATIENCE_MS } = options
  const endMs = performance.now() + patienceMs
  for (;;) {
    const held = await tryToListen(name)
    if (held !== undefined) return held
    const holder = await holderOf(name)
    if (holder !== undefined && !mayWriteRules(holder)) {
      // At once: who cannot keep the daemon from starting is not to hold it up either.
      log.warn('Somebody who is no daemon has the name by which a second daemon is noticed', {
        pid: holder.pid,
        uid: holder.uid,
      })
      return undefined
    }
    if (performance.now() > endMs)
      throw new MeshError(
        'HM_CAPTURE_HELD',
        `Cannot start: another daemon${holder === undefined ? '' : `, process ${holder.pid},`} keeps the rules of this network namespace`,
        {
          hint: `One daemon a host: end that one first (systemctl stop hostmesh${holder === undefined ? '' : `, or kill ${holder.pid}`})`,
        },
      )
    await delay(AGAIN_MS)
  }
}

async function tryToListen(name: string): Promise<AsyncDisposable | undefined> {
  // There is nothing to be said: whoever asks reads who listens.
  const server = createServer((socket) => socket.destroy())
  server.listen(name)
  try {
    await once(server, 'listening')
  } catch (error) {
    if (errorCode(error) === 'EADDRINUSE') return undefined
    throw error
  }
  server.unref()
  return { [Symbol.asyncDispose]: () => new Promise((resolve) => server.close(() => resolve())) }
}

/** Who listens there; undefined when nobody does, or nobody that can be asked. */
export async function holderOf(name: string): Promise<Holder | undefined> {
  const socket = connect(name)
  socket.on('error', () => undefined)
  try {
    await once(socket, 'connect')
    const [pid, uid] = credentialsOf(descriptorOf(socket))
    return pid === undefined || uid === undefined ? undefined : { pid, uid }
  } catch {
    return undefined
  } finally {
    socket.destroy()
  }
}

/** Process, user and group of who listens at the other end; nothing when the kernel does not say. */
function credentialsOf(fd: number): readonly number[] {
  const numbers = new Int32Array(CREDENTIAL_NUMBERS)
  const length = new Uint32Array([numbers.byteLength])
  const bytes = new Uint8Array(numbers.buffer)
  const calls = requireNativeCalls('asks who holds a socket')
  return calls.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, bytes, length) === 0 ? [...numbers] : []
}

/** Root, our own user, or whoever has the capability for it in the user namespace that we are in. */
export function mayWriteRules({ pid, uid }: Holder): boolean {
  if (uid === 0 || uid === process.geteuid?.()) return true
  try {
    const [, effective = '0'] =
      /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1')) ?? []
    // In a user namespace of his own everybody has every capability.
    const isSameNamespace = uidMapOf(pid) === uidMapOf('self')
    return isSameNamespace && (BigInt(`0x${effective}`) & CAP_NET_ADMIN) !== 0n
  } catch {
    return false
  }
}

function uidMapOf(pid: number | 'self'): string {
  return readFileSync(`/proc/${pid}/uid_map`, 'latin1')
}
