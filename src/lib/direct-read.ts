/**
 * Reading from a socket into memory of our own: Node's `onread` option, for sockets that already exist.
 *
 * Node documents `onread` for `net.connect` only; sockets that a server accepted, and TLS sockets, have
 * the same machinery but no public way in. Measured on the data path it is worth 20 % of a relay's CPU
 * time (docs/performance.md), so this one file reaches for it: three symbol-keyed fields of net.Socket and
 * the handle's `useUserBuffer`. Where a runtime lacks them {@link readDirect} says so, and the caller reads
 * the ordinary way: slower, never wrong.
 */
import { Socket } from 'node:net'

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
  const handle = (socket as unknown as { readonly _handle?: { readonly _parent?: unknown } | null })
    ._handle
  const carrier = handle?._parent
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
