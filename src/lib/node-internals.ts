/**
 * Reads undocumented fields of Node's sockets; no other file does. Each function states its result where a runtime
 * lacks the field; test/unit/native.test.ts fails when a field moves.
 */
import { type Server, Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'

/** The connection under a TLS connection, as in libuv. */
export interface TcpHandle {
  close(callback?: () => void): void
  reset(callback?: () => void): number
  readStart(): number
  readStop(): number
}

interface WithHandle {
  readonly _handle:
    | {
        readonly fd?: unknown
        readonly _parent?: unknown
        readonly reading?: unknown
        readonly verifyError?: unknown
      }
    | null
    | undefined
}

/** The descriptor of an open socket or server; -1 once it is closed. A plain load, which the engine can cache. */
export function descriptorOf(owner: Socket | Server): number {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- every socket and server has the field
  const fd = (owner as unknown as WithHandle)._handle?.fd
  return typeof fd === 'number' ? fd : -1
}

/** The TCP connection that carries a TLS socket; undefined for a TCP socket, and for one that is closed. */
export function tcpUnder(socket: Socket): TcpHandle | undefined {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- every socket has the field
  const parent = (socket as unknown as WithHandle)._handle?._parent
  return isTcpHandle(parent) ? parent : undefined
}

/** Whether a socket's handle is reading now. */
export function isReading(socket: Socket): boolean {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- every socket has the field
  return Boolean((socket as unknown as WithHandle)._handle?.reading)
}

/** The socket from which a TLS socket was created; undefined if there is none. */
export function rawSocketOf(socket: TLSSocket): object | undefined {
  const raw: unknown = Reflect.get(socket, '_parent')
  return typeof raw === 'object' && raw !== null ? raw : undefined
}

/** Whether the chain of a TLS peer was not verified; Node checks the same a moment later. */
export function isPeerUnverified(socket: TLSSocket): boolean {
  const handle: unknown = Reflect.get(socket, '_handle')
  if (typeof handle !== 'object' || handle === null || !('verifyError' in handle)) return false
  return typeof handle.verifyError === 'function' && Boolean(handle.verifyError())
}

function isTcpHandle(value: unknown): value is TcpHandle {
  const names = ['close', 'reset', 'readStart', 'readStop']
  return (
    typeof value === 'object' &&
    value !== null &&
    names.every((name) => typeof Reflect.get(value, name) === 'function')
  )
}

// Reads from a socket into our own memory: Node's `onread` option, for existing sockets. Node documents it only for
// `net.connect`; accepted sockets and TLS sockets have the same mechanism, but no public access to it. On the data path
// it saves 20 % of a relay's CPU time (docs/performance.md). It needs three symbol-keyed fields of net.Socket and the
// handle's `useUserBuffer`; without them the caller reads the ordinary way: slower, never wrong.

/** The receiver of the bytes, and the provider of the buffers. */
export interface DirectReader {
  /** `length` bytes were read into the start of the last buffer. */
  onRead(length: number): void
  /** The buffer for the next read, or undefined to use the same again. Called after every onRead. */
  nextBuffer(): Uint8Array | undefined
}

interface UserBufferHandle {
  reading: boolean
  useUserBuffer(buffer: Uint8Array): void
  readStart(): number
  readStop(): number
}

/** The symbols of the net.Socket fields that store the `onread` option. */
interface Internals {
  readonly buffer: symbol
  readonly callback: symbol
  readonly generator: symbol
}

const internals = findInternals()

function findInternals(): Internals | undefined {
  const probe = new Socket({
    onread: { buffer: new Uint8Array(1), callback: () => true },
  })
  const symbols = new Map<string, symbol>()
  for (const symbol of Object.getOwnPropertySymbols(probe))
    symbols.set(symbol.description ?? '', symbol)
  probe.destroy()
  const buffer = symbols.get('kBuffer')
  const callback = symbols.get('kBufferCb')
  const generator = symbols.get('kBufferGen')
  if (buffer === undefined || callback === undefined || generator === undefined) return undefined
  return { buffer, callback, generator }
}

/** Whether this runtime supports direct reads. */
export const canReadDirectly: boolean = internals !== undefined

/**
 * From now on, data received by `socket` goes to `reader`, first into `buffer`. `end`, `error`, `close`,
 * pause() and resume() are unchanged. Must be called once, before the socket's first read.
 * @returns false when the runtime or the socket does not support it; then nothing has changed.
 */
export function readDirect(socket: Socket, buffer: Uint8Array, reader: DirectReader): boolean {
  if (internals === undefined) return false
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- a plain keyed store is what the engine can cache; Reflect.set is not
  const fields = socket as unknown as Record<string | symbol, unknown>
  const handle = fields['_handle']
  if (!hasUserBuffer(handle)) return false
  fields[internals.buffer] = buffer
  // Named first, then assigned: docs/performance.md, "Garbage".
  const callback = (length: number): boolean => {
    reader.onRead(length)
    return true
  }
  const generator = (): Uint8Array | undefined => reader.nextBuffer()
  fields[internals.callback] = callback
  fields[internals.generator] = generator
  handle.useUserBuffer(buffer)
  return true
}

/**
 * Stops or starts the reads of a socket with {@link readDirect}, without changing the stream's
 * state: it happens once per large write. A closed socket is ignored.
 */
export function setReading(socket: Socket, wanted: boolean): void {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- see readDirect
  const handle = (socket as unknown as { readonly _handle: UserBufferHandle | null })._handle
  if (handle === null || handle === undefined || handle.reading === wanted) return
  handle.reading = wanted
  if (wanted) handle.readStart()
  else handle.readStop()
}

/**
 * Bytes that the TCP connection under a TLS socket has received so far, including those of handshake and TLS overhead;
 * undefined where there is none, or the runtime does not report it. TLSSocket.bytesRead counts decrypted bytes.
 */
export function carriedBytes(socket: Socket): number | undefined {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- see readDirect
  const carrier = (socket as unknown as WithHandle)._handle?._parent
  if (typeof carrier !== 'object' || carrier === null || !('bytesRead' in carrier)) return undefined
  return typeof carrier.bytesRead === 'number' ? carrier.bytesRead : undefined
}

function hasUserBuffer(handle: unknown): handle is UserBufferHandle {
  return (
    typeof handle === 'object' &&
    handle !== null &&
    'useUserBuffer' in handle &&
    typeof handle.useUserBuffer === 'function' &&
    'readStart' in handle &&
    'readStop' in handle &&
    'reading' in handle
  )
}
