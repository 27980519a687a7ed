/**
 * A first-in, first-out queue of bytes, in memory blocks that all queues of the thread share.
 *
 * Copies its input, so the caller's memory is free at once. Large chunks go into pooled blocks (no allocation, no
 * zeroing, no garbage), medium ones into pooled pieces. A small one gets an exact copy, so that ten thousand queues
 * with a few bytes each do not hold ten thousand blocks; further ones share memory, so that a million single bytes do
 * not become a million pieces. The caller enforces limits, by {@link ByteQueue.length} and {@link ByteQueue.memory}.
 */

/** Size of a pooled block, and the most that one {@link ByteQueue.takeFront} returns. */
export const BLOCK_BYTES = 65_536

/** A first chunk below this gets an exact copy; later small ones share a piece of this size, or a block. */
const SMALL_BYTES = 4_096

/** A first chunk up to this gets no block either: thousands of queues may each hold one. */
const SMALL_FIRST_BYTES = 8_192

/** Idle blocks (16 MiB) and first pieces (8 MiB) kept for reuse; the garbage collector frees the others. */
const MAX_IDLE_BLOCKS = 256
const MAX_IDLE_FIRST_PIECES = 1_024

const idleBlocks: Uint8Array[] = []
const idleFirstPieces: Uint8Array[] = []

interface Piece {
  readonly memory: Uint8Array
  /** Whether it is reused. */
  readonly isPooled: boolean
  start: number
  end: number
}

/** Result of {@link ByteQueue.takeFront}. */
export interface TakenBytes {
  readonly bytes: Uint8Array
  /** Returns the memory for reuse; must not be called when a receiver has kept it. */
  release(): void
}

/** A queue of bytes. */
export class ByteQueue {
  private readonly pieces: Piece[] = []
  private bytes = 0
  private allocated = 0

  /** Memory of the queue, bytes: whole blocks, including their unused part. */
  get memory(): number {
    return this.allocated
  }

  /** Bytes in the queue. */
  get length(): number {
    return this.bytes
  }

  /** Appends a copy of `chunk`. */
  push(chunk: Uint8Array): void {
    this.bytes += chunk.length
    let at = 0
    const last = this.pieces.at(-1)
    if (last !== undefined) at = fill(last, chunk, 0)
    while (at < chunk.length) {
      const piece = newPiece(chunk.length - at, this.pieces.at(-1))
      this.pieces.push(piece)
      this.allocated += piece.memory.length
      at = fill(piece, chunk, at)
    }
  }

  /**
   * Moves up to `limit` bytes from the front into `target` at `offset`, fewer where a piece ends.
   * @returns how many; 0 only when the queue is empty or `limit` is 0.
   */
  moveInto(target: Uint8Array, offset: number, limit: number): number {
    const first = this.pieces[0]
    if (first === undefined) return 0
    const length = Math.min(limit, first.end - first.start)
    target.set(first.memory.subarray(first.start, first.start + length), offset)
    first.start += length
    this.bytes -= length
    if (first.start === first.end) {
      this.pieces.shift()
      this.allocated -= first.memory.length
      release(first)
    }
    return length
  }

  /** Removes the contiguous bytes at the front; undefined when empty. The caller releases them. */
  takeFront(): TakenBytes | undefined {
    const first = this.pieces.shift()
    if (first === undefined) return undefined
    const bytes = first.memory.subarray(first.start, first.end)
    this.bytes -= bytes.length
    this.allocated -= first.memory.length
    return { bytes, release: () => release(first) }
  }

  /** Removes all bytes. */
  clear(): void {
    for (const piece of this.pieces.splice(0)) release(piece)
    this.bytes = 0
    this.allocated = 0
  }
}

/** Memory for `bytes` more after `last`: the larger the previous piece, the larger the next. */
function newPiece(bytes: number, last: Piece | undefined): Piece {
  if (last === undefined && bytes < SMALL_BYTES)
    return { memory: Buffer.allocUnsafeSlow(bytes), isPooled: false, start: 0, end: 0 }
  if (last === undefined && bytes <= SMALL_FIRST_BYTES)
    return {
      memory: idleFirstPieces.pop() ?? Buffer.allocUnsafeSlow(SMALL_FIRST_BYTES),
      isPooled: true,
      start: 0,
      end: 0,
    }
  if (bytes >= SMALL_BYTES || (last !== undefined && last.memory.length >= SMALL_BYTES))
    return {
      memory: idleBlocks.pop() ?? Buffer.allocUnsafeSlow(BLOCK_BYTES),
      isPooled: true,
      start: 0,
      end: 0,
    }
  return { memory: Buffer.allocUnsafe(SMALL_BYTES), isPooled: false, start: 0, end: 0 }
}

function fill(piece: Piece, chunk: Uint8Array, from: number): number {
  const take = Math.min(chunk.length - from, piece.memory.length - piece.end)
  if (take <= 0) return from
  piece.memory.set(
    from === 0 && take === chunk.length ? chunk : chunk.subarray(from, from + take),
    piece.end,
  )
  piece.end += take
  return from + take
}

function release(piece: Piece): void {
  if (!piece.isPooled) return
  const [idle, most] =
    piece.memory.length === BLOCK_BYTES
      ? [idleBlocks, MAX_IDLE_BLOCKS]
      : [idleFirstPieces, MAX_IDLE_FIRST_PIECES]
  if (idle.length < most) idle.push(piece.memory)
}

/** Discards the memory kept for reuse. */
export function forgetIdlePieces(): void {
  idleBlocks.length = 0
  idleFirstPieces.length = 0
}
