/**
 * One service process of a test: it dials and listens as the test tells it, over the channel to its parent.
 *
 * It starts as root only to read its own source wherever the checkout is, and becomes the user it is given
 * before it opens any socket: the kernel must see that user as the owner. It ends when the channel does.
 *
 * Connections are read only when asked for, so that a test decides when a reader is slow; `allowHalfOpen`
 * is on, and every ending is reported as what it was: `end`, or the error's code.
 */
import { createHash } from 'node:crypto'
import { connect, createServer, type Server, type Socket } from 'node:net'

import type { Reply, Request, Rest, Sent, WorkloadEvent } from '../workload-protocol.ts'

const uid = Number(process.argv[2])
const identity = { service: process.argv[3] ?? '', instance: process.argv[4] ?? '' }

process.setgroups?.([])
process.setgid?.(uid)
process.setuid?.(uid)

/** Bytes that differ along the stream, so that a gap or a repetition changes the digest. */
const pattern = Buffer.alloc(251 * 256)
for (let i = 0; i < pattern.length; i += 1) pattern[i] = (i % 251) ^ (i >> 8)

/** A longest wait for anything asked of this process; the parent has its own, shorter ones. */
const DIAL_LIMIT_MS = 30_000

const MOST = Number.MAX_SAFE_INTEGER

interface Pending {
  settle(): boolean
  fail(error: Error): void
}

/** One socket and what is being waited for on it. */
class Connection {
  readonly socket: Socket
  private pending: Pending[] = []
  private line = Buffer.alloc(0)
  private ended = false
  private failure: Error | undefined
  private closed = false

  constructor(socket: Socket) {
    this.socket = socket
    socket.setNoDelay(true)
    socket.on('readable', () => this.pump())
    socket.on('end', () => {
      this.ended = true
      this.pump()
    })
    socket.on('error', (error) => {
      this.failure = error
      this.pump()
    })
    socket.on('close', () => {
      this.closed = true
      this.pump()
    })
  }

  /** Reads exactly `count` bytes, or fewer when the other side finished before. */
  read(count: number): Promise<Buffer> {
    const parts: Buffer[] = []
    let missing = count
    return this.wait(() => {
      while (missing > 0) {
        const bytes = this.take(missing)
        if (bytes === null) break
        parts.push(bytes)
        missing -= bytes.length
      }
      return missing === 0 || this.ended ? Buffer.concat(parts) : undefined
    })
  }

  /** Reads to the next line feed, which is not part of the answer. */
  readLine(): Promise<string> {
    return this.wait(() => {
      for (let bytes = this.fetch(MOST); bytes !== null; bytes = this.fetch(MOST))
        this.line = Buffer.concat([this.line, bytes])
      const at = this.line.indexOf(10)
      if (at >= 0) {
        const text = this.line.subarray(0, at).toString('utf8')
        this.line = this.line.subarray(at + 1)
        return text
      }
      if (this.ended) throw new Error(`Ended before a whole line, after "${this.line.toString()}"`)
      return undefined
    })
  }

  /** Reads to the end, whatever it is. */
  readRest(): Promise<Rest> {
    const hash = createHash('sha256')
    let bytes = 0
    let tail = Buffer.alloc(0)
    const consume = (): void => {
      for (let chunk = this.takeAny(); chunk !== null; chunk = this.takeAny()) {
        hash.update(chunk)
        bytes += chunk.length
        tail = Buffer.concat([tail, chunk]).subarray(-4096)
      }
    }
    return new Promise((resolve) => {
      const finish = (ending: string): void =>
        resolve({ bytes, sha256: hash.digest('hex'), ending, tail: tail.toString('latin1') })
      this.await({
        settle: () => {
          consume()
          if (!this.ended) return false
          finish('end')
          return true
        },
        fail: (error) => {
          consume()
          finish(codeOf(error))
        },
      })
    })
  }

  /** Sends; resolves when the kernel has taken all of it. */
  write(bytes: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      // What broke the connection says more than that it is broken.
      this.socket.write(bytes, (error) => (error ? reject(this.failure ?? error) : resolve()))
    })
  }

  /**
   * Sends `total` bytes of the pattern in chunks; stops early when nothing moved for `stallMs`. The last
   * chunk waits in this process then, and counts as written: it is sent when there is room again.
   */
  async writePattern(total: number, chunkBytes: number, stallMs: number): Promise<Sent> {
    const hash = createHash('sha256')
    let bytes = 0
    while (bytes < total) {
      const start = bytes % pattern.length
      const chunk = pattern.subarray(start, start + Math.min(chunkBytes, total - bytes))
      hash.update(chunk)
      bytes += chunk.length
      if (!(await settlesWithin(this.write(chunk), stallMs)))
        return { bytes, sha256: hash.digest('hex'), stalled: true }
    }
    return { bytes, sha256: hash.digest('hex'), stalled: false }
  }

  private take(atMost: number): Buffer | null {
    if (this.line.length > 0) {
      const bytes = this.line.subarray(0, atMost)
      this.line = this.line.subarray(bytes.length)
      return bytes
    }
    return this.fetch(atMost)
  }

  private takeAny(): Buffer | null {
    return this.take(MOST)
  }

  private fetch(atMost: number): Buffer | null {
    const available = Math.min(atMost, this.socket.readableLength)
    // read() with nothing buffered is what makes Node fetch more, and notice the end.
    return this.socket.read(available) as Buffer | null
  }

  private wait<T>(attempt: () => T | undefined): Promise<T> {
    return new Promise((resolve, reject) => {
      this.await({
        settle: () => {
          const value = attempt()
          if (value === undefined) return false
          resolve(value)
          return true
        },
        fail: reject,
      })
    })
  }

  private await(pending: Pending): void {
    this.pending.push(pending)
    this.pump()
  }

  private pump(): void {
    let first = this.pending[0]
    while (first !== undefined) {
      try {
        if (!first.settle()) {
          if (this.failure === undefined && !this.closed) return
          first.fail(this.failure ?? new Error('Closed without a proper end'))
        }
      } catch (error) {
        first.fail(error instanceof Error ? error : new Error(String(error)))
      }
      this.pending.shift()
      first = this.pending[0]
    }
  }
}

const connections = new Map<number, Connection>()
const servers = new Set<Server>()
let lastConnection = 0

function adopt(socket: Socket): number {
  lastConnection += 1
  const id = lastConnection
  connections.set(id, new Connection(socket))
  socket.once('close', () => {
    // Kept a while: the test may still ask how it ended.
    setTimeout(() => connections.delete(id), 30_000).unref()
  })
  return id
}

function connection(id: number): Connection {
  const found = connections.get(id)
  if (found === undefined) throw new Error(`No connection ${id}`)
  return found
}

/** Says who answers, then returns every byte: a wrong delivery cannot look like a right one. */
function echo(socket: Socket): void {
  socket.setNoDelay(true)
  let head = Buffer.alloc(0)
  const onHead = (chunk: Buffer): void => {
    head = Buffer.concat([head, chunk])
    const at = head.indexOf(10)
    if (at < 0) return
    socket.off('data', onHead)
    const nonce = head.subarray(0, at).toString('utf8')
    socket.write(`${JSON.stringify({ ...identity, nonce, from: socket.remoteAddress })}\n`)
    const rest = head.subarray(at + 1)
    if (rest.length > 0) socket.write(rest)
    socket.pipe(socket)
  }
  socket.on('data', onHead)
  socket.on('end', () => socket.end())
  socket.on('error', () => socket.destroy())
}

/** Writes for as long as somebody takes it. */
function pour(socket: Socket): void {
  const block = Buffer.alloc(65_536, 'z')
  const more = (): void => {
    while (!socket.destroyed && socket.write(block));
  }
  socket.on('drain', more)
  socket.on('error', () => socket.destroy())
  socket.on('end', () => socket.destroy())
  socket.resume()
  more()
}

async function listen(request: Extract<Request, { op: 'listen' }>): Promise<null> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    if (request.behavior === 'echo') echo(socket)
    else if (request.behavior === 'endless') pour(socket)
    else emit({ event: 'accepted', connection: adopt(socket), port: request.port })
  })
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen(request.port, request.address, resolve)
  })
  servers.add(server)
  return null
}

function dial(request: Extract<Request, { op: 'dial' }>): Promise<number> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host: request.ip, port: request.port, allowHalfOpen: true })
    const timer = setTimeout(
      () => socket.destroy(new Error(`No connection in ${DIAL_LIMIT_MS} ms`)),
      DIAL_LIMIT_MS,
    )
    socket.once('error', reject)
    socket.once('connect', () => {
      clearTimeout(timer)
      socket.off('error', reject)
      resolve(adopt(socket))
    })
    socket.once('close', () => clearTimeout(timer))
  })
}

async function perform(request: Request): Promise<unknown> {
  switch (request.op) {
    case 'listen':
      return listen(request)
    case 'unlisten':
      for (const server of servers) server.close()
      servers.clear()
      return null
    case 'dial':
      return dial(request)
    case 'read':
      return connection(request.connection).read(request.count)
    case 'readLine':
      return connection(request.connection).readLine()
    case 'readRest':
      return connection(request.connection).readRest()
    case 'write':
      await connection(request.connection).write(Buffer.from(request.bytes))
      return null
    case 'writePattern':
      return connection(request.connection).writePattern(
        request.total,
        request.chunkBytes,
        request.stallMs,
      )
    case 'end':
      connection(request.connection).socket.end()
      return null
    case 'reset':
      connection(request.connection).socket.resetAndDestroy()
      return null
    case 'closeAll':
      for (const { socket } of connections.values()) socket.destroy()
      return null
  }
}

function codeOf(error: Error): string {
  return 'code' in error && typeof error.code === 'string' ? error.code : error.message
}

function emit(message: Reply | WorkloadEvent): void {
  if (process.connected) process.send?.(message)
}

async function settlesWithin(promise: Promise<void>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined
  const expiry = new Promise<false>((resolve) => {
    timer = setTimeout(() => resolve(false), ms)
  })
  try {
    return await Promise.race([promise.then(() => true as const), expiry])
  } finally {
    clearTimeout(timer)
  }
}

process.on('message', (request: Request) => {
  perform(request).then(
    (value) => emit({ id: request.id, value }),
    (error: Error) =>
      emit({ id: request.id, error: { code: codeOf(error), message: error.message } }),
  )
})
process.on('disconnect', () => process.exit(0))
emit({ event: 'ready' })
