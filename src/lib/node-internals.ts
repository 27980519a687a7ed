/**
 * Undocumented fields of Node's sockets, read here and nowhere else. Each function says what it answers where a runtime
 * lacks the field; test/unit/native.test.ts fails when one moves.
 */
import { type Server, Socket } from 'node:net'
import type { TLSSocket } from 'node:tls'

/** The connection under a TLS connection, as libuv has it. */
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

/** Whether a socket's handle reads now. */
export function isReading(socket: Socket): boolean {
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- every socket has the field
  return Boolean((socket as unknown as WithHandle)._handle?.reading)
}

/** The socket that a TLS socket was made from; undefined where it was made from none. */
export function rawSocketOf(socket: TLSSocket): object | undefined {
  const raw: unknown = Reflect.get(socket, '_parent')
  return typeof raw === 'object' && raw !== null ? raw : undefined
}

/** Whether the chain of a TLS peer was not verified; Node asks the same a moment later. */
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

// Reading from a socket into memory of our own: Node's `onread` option, for sockets that already exist. Node documents it for
// `net.connect` only; sockets that a server accepted, and TLS sockets, have the same machinery but no public way in. Measured
// on the data path it is worth 20 % of a relay's CPU time (docs/performance.md). It takes three symbol-keyed fields of
// net.Socket and the handle's `useUserBuffer`; without them the caller reads the ordinary way: slower, never wrong.

/** Who receives the bytes, and where they are put. */
export interface DirectReader {
  /** `length` bytes were read to the start of the buffer given last. */
  onRead(length: number): void
  /** The buffer for the next read, or undefined to use the same again. Asked after every onRead. */
  nextBuffer(): Uint8Array | undefined
}

interface UserBufferHandle {
  reading: boolean
  useUserBuffer(buffer: Uint8Array): void
  readStart(): number
  readStop(): number
}

/** The fields of net.Socket that hold what `onread` was given, by their symbols. */
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

/** Whether this runtime lets us read directly at all. */
export const canReadDirectly: boolean = internals !== undefined

/**
 * From now on what `socket` receives goes to `reader`, first into `buffer`. `end`, `error`, `close`,
 * pause() and resume() stay as they are. Must be called before the socket's first read, once.
 * @returns false when the runtime or the socket does not allow it; nothing has changed then.
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
 * Stops or starts the reads of a socket that {@link readDirect} took over, without the detour through the
 * stream's state: it happens once per large write. A socket that is closed already is left alone.
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
 * Bytes that the TCP connection under a TLS socket has brought so far, those of its handshake and its own messages included;
 * undefined where there is none, or the runtime does not say. TLSSocket.bytesRead counts what was decrypted.
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
