/**
 * Lock for the kernel rules of a network namespace: two daemons would overwrite each other's rules endlessly.
 *
 * The lock is an abstract Unix socket: each network namespace has its own, and it is free as soon as its holder ends.
 * Any local user may bind that name, but must not keep the daemon from starting: a holder counts only if it could write
 * rules, by the credentials that the kernel reports.
 */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, createServer } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { errorCode, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { requireNativeCalls, SOL_SOCKET } from '../lib/native.ts'
import { descriptorOf } from '../lib/node-internals.ts'

/** The leading zero makes the name abstract: no file. */
const NAME = '\0hostmesh-kernel-rules'

/** How long to wait for the lock: a killed daemon needs a moment to end; a hand-over frees it at once. Milliseconds. */
const DEFAULT_TIMEOUT_MS = 3_000
const AGAIN_MS = 50

const SO_PEERCRED = 17
const CREDENTIAL_NUMBERS = 3
const CAP_NET_ADMIN = 1n << 12n

/** The process that listens on a Unix socket, as the kernel reports it. */
export interface Holder {
  readonly pid: number
  readonly uid: number
}

/**
 * Holds the lock until it is disposed or the process ends. If a process that cannot be a daemon has the name, logs that
 * and returns undefined. @throws MeshError HM_CAPTURE_HELD when another daemon holds it
 */
export async function holdKernelRules(
  log: Log,
  options: { readonly name?: string; readonly timeoutMs?: number } = {},
): Promise<AsyncDisposable | undefined> {
  const { name = NAME, timeoutMs = DEFAULT_TIMEOUT_MS } = options
  const endMs = performance.now() + timeoutMs
  for (;;) {
    const held = await tryToListen(name)
    if (held !== undefined) return held
    const holder = await holderOf(name)
    if (holder !== undefined && !mayWriteRules(holder)) {
      // Without a wait: such a process must not delay the start either.
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
  // Nothing is sent: a client only reads who listens.
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

/** The process that listens on a name; undefined when there is none or it cannot be determined. */
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

/** Process, user and group of the listening peer; empty when the kernel does not report them. */
function credentialsOf(fd: number): readonly number[] {
  const numbers = new Int32Array(CREDENTIAL_NUMBERS)
  const length = new Uint32Array([numbers.byteLength])
  const bytes = new Uint8Array(numbers.buffer)
  const calls = requireNativeCalls('asks who holds a socket')
  return calls.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, bytes, length) === 0 ? [...numbers] : []
}

/** Whether the process is root, our own user, or has CAP_NET_ADMIN in our user namespace. */
export function mayWriteRules({ pid, uid }: Holder): boolean {
  if (uid === 0 || uid === process.geteuid?.()) return true
  try {
    const [, effective = '0'] =
      /^CapEff:\s*([0-9a-f]+)/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1')) ?? []
    // In its own user namespace any process has every capability.
    const isSameNamespace = uidMapOf(pid) === uidMapOf('self')
    return isSameNamespace && (BigInt(`0x${effective}`) & CAP_NET_ADMIN) !== 0n
  } catch {
    return false
  }
}

function uidMapOf(pid: number | 'self'): string {
  return readFileSync(`/proc/${pid}/uid_map`, 'latin1')
}
