/**
 * The framing against the reference implementation: hashicorp/yamux in Go (test/interop/yamux/peer.go), built
 * here from Debian's packages.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Duplex } from 'node:stream'
import { after, before, test } from 'node:test'
import { FULL } from '../../src/dataplane/io/byte-stream.ts'
import { StreamResetError } from '../../src/dataplane/tunnel/stream.ts'
import { within } from '../harness/eventually.ts'
import { Collector, type SessionEnd, startSession } from './tunnel-fixtures.ts'

const SOURCES = '/usr/share/gocode'
const work = mkdtempSync(join(tmpdir(), 'hostmesh-yamux-'))
const peer = join(work, 'peer')

before(() => {
  if (!existsSync(join(SOURCES, 'src/github.com/hashicorp/yamux')))
    throw new Error(
      'hashicorp/yamux is missing; install the Debian package golang-github-hashicorp-yamux-dev',
    )
  try {
    execFileSync('go', ['build', '-o', peer, '.'], {
      cwd: new URL('../interop/yamux', import.meta.url),
      env: { ...process.env, GO111MODULE: 'off', GOPATH: SOURCES, GOFLAGS: '' },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT')
      throw new Error('Go is missing; install the Debian package golang-go', { cause: error })
    throw error
  }
})
after(() => rmSync(work, { recursive: true }))

/** A TCP connection that copies what it is given: a session reuses memory, as it may over TLS. */
class CopyingCarrier extends Duplex {
  private readonly socket: Socket

  constructor(socket: Socket) {
    super({ allowHalfOpen: true, emitClose: true })
    this.socket = socket
    socket.on('data', (chunk: Buffer) => {
      if (!this.push(chunk)) socket.pause()
    })
    socket.on('end', () => this.push(null))
    socket.on('error', (error) => this.destroy(error))
    socket.on('close', () => this.destroy())
  }

  override _read(): void {
    this.socket.resume()
  }

  override _write(chunk: Buffer, _encoding: string, done: () => void): void {
    this.socket.write(Buffer.from(chunk), () => done())
  }

  override _final(done: () => void): void {
    this.socket.end(done)
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.socket.destroy()
    done(error)
  }
}

/** The Go process and what it says. */
class GoPeer implements AsyncDisposable {
  private readonly child: ChildProcess
  private readonly lines: string[] = []
  private readonly waiting = new Set<() => void>()
  private complaints = ''

  constructor(...argv: string[]) {
    this.child = spawn(peer, argv, { stdio: ['ignore', 'pipe', 'pipe'] })
    createInterface({ input: this.child.stdout! }).on('line', (line) => {
      this.lines.push(line)
      for (const resolve of this.waiting) resolve()
      this.waiting.clear()
    })
    this.child.stderr!.on('data', (chunk: Buffer) => {
      this.complaints += chunk.toString()
    })
  }

  /** The next line that begins with `word`, without it. */
  line(word: string): Promise<string> {
    const find = async (): Promise<string> => {
      for (;;) {
        const at = this.lines.findIndex((line) => line.startsWith(word))
        if (at >= 0) return this.lines.splice(at, 1)[0]!.slice(word.length).trim()
        await new Promise<void>((resolve) => this.waiting.add(resolve))
      }
    }
    return within(10_000, `the peer's line ${word} (it says: ${this.complaints})`, find())
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return
    this.child.kill()
    await once(this.child, 'exit')
  }
}

async function openTo(go: GoPeer): Promise<SessionEnd> {
  const socket = connect({ host: '127.0.0.1', port: Number(await go.line('port')), noDelay: true })
  await once(socket, 'connect')
  return startSession(new CopyingCarrier(socket) as unknown as Socket, 'opener')
}

const large = Buffer.alloc(10 * 1_048_576)
for (let i = 0; i < large.length; i += 4) large.writeUInt32LE((i * 2_654_435_761) >>> 0, i)

async function writeAll(to: Collector, bytes: Uint8Array): Promise<void> {
  for (let at = 0; at < bytes.length; at += 60_000) {
    const seen = to.writable
    if ((to.stream.write(bytes.subarray(at, at + 60_000)) & FULL) !== 0)
      await to.until(() => to.writable > seen)
  }
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

test('our opener and a Go server understand each other', async () => {
  await using go = new GoPeer('serve')
  const { session, socket, closed } = await openTo(go)
  assert.equal(await go.line('ping'), 'true', 'we answer its ping')

  // Ten megabytes each way at once.
  const echoed = session.open(Buffer.from('e'))
  const echo = new Collector(echoed)
  echoed.resume()
  await within(
    15_000,
    'the echo',
    Promise.all([writeAll(echo, large), echo.until(() => echo.length === large.length)]),
  )
  assert.equal(sha256(echo.bytes), sha256(large))
  assert.ok(echoed.isConfirmed)
  echoed.end()
  await echo.until(() => echo.closedInOrder)

  // Half-close: it answers after our end.
  const hashed = session.open(Buffer.from('h'))
  const hash = new Collector(hashed)
  hashed.resume()
  await writeAll(hash, large.subarray(0, 3_000_000))
  hashed.end()
  await within(
    5_000,
    'the hash',
    hash.until(() => hash.closedInOrder),
  )
  assert.equal(hash.bytes.toString(), sha256(large.subarray(0, 3_000_000)))

  // An empty stream: end right after the command.
  const nothing = session.open(Buffer.from('h'))
  const empty = new Collector(nothing)
  nothing.resume()
  nothing.end()
  await within(
    5_000,
    'the hash of nothing',
    empty.until(() => empty.closedInOrder),
  )
  assert.equal(empty.bytes.toString(), sha256(Buffer.alloc(0)))

  // Our reset is one for it; its frames before it noticed do no harm.
  const reset = session.open(Buffer.from('r'))
  await new Promise((resolve) => setTimeout(resolve, 50))
  reset.reset()
  assert.match(await go.line('read failed:'), /reset/)

  // It answers our pings.
  session.tick(performance.now())
  await within(
    5_000,
    'a round trip',
    untilTruthy(() => session.roundTripMs),
  )

  assert.equal(session.streamCount, 0)
  session.drain()
  assert.equal((await closed).code, 'HM_TUNNEL_DRAINED')
  await go.line('session ended')
  await within(
    5_000,
    'the end of the connection',
    untilTruthy(() => socket.destroyed),
  )
})

test('a stream that a Go server does not take is reset for us', async () => {
  await using go = new GoPeer('serve', 'stall')
  const { session, socket } = await openTo(go)
  const first = new Collector(session.open(Buffer.from('e')))
  const second = new Collector(session.open(Buffer.from('e')))
  await within(
    5_000,
    'the reset',
    second.until(() => second.reset !== undefined),
  )
  assert.ok(second.reset instanceof StreamResetError)
  assert.equal(second.reset.reason, 'unspecified')
  assert.equal(first.reset, undefined)
  socket.destroy()
})

test('a Go client and our acceptor understand each other', async () => {
  await using undo = new AsyncDisposableStack()
  const server = createServer({ noDelay: true }).listen(0, '127.0.0.1')
  undo.defer(() => {
    server.close()
  })
  await once(server, 'listening')
  const go = undo.use(new GoPeer('dial', String((server.address() as AddressInfo).port)))
  const [accepted] = (await once(server, 'connection')) as [Socket]
  const { nextStream, session, closed } = startSession(
    new CopyingCarrier(accepted) as unknown as Socket,
    'acceptor',
  )
  assert.equal(await go.line('ping'), 'true')

  const echoed = await nextStream()
  const reader = new Collector(echoed, { keepsBytes: false })
  const onBytes = (bytes: Uint8Array): number => Collector.prototype.onBytes.call(reader, bytes)
  reader.onBytes = (bytes) => {
    if ((echoed.write(bytes) & FULL) !== 0) echoed.pause()
    return onBytes(bytes)
  }
  reader.onWritable = () => echoed.resume()
  echoed.confirm()
  echoed.resume()
  assert.equal(await go.line('echo'), 'true')
  await within(
    5_000,
    'its end',
    reader.until(() => reader.ended),
  )
  echoed.end()
  assert.equal(reader.length, large.length)

  const halfClosed = await nextStream()
  const words = new Collector(halfClosed)
  halfClosed.confirm()
  halfClosed.resume()
  await within(
    5_000,
    'its end',
    words.until(() => words.ended),
  )
  assert.equal(words.bytes.toString(), 'last words')
  assert.equal(halfClosed.isClosed, false)
  halfClosed.end()
  assert.ok(halfClosed.isClosed)

  const refused = await nextStream()
  const doomed = new Collector(refused)
  refused.confirm()
  refused.resume()
  await within(
    5_000,
    'its bytes',
    doomed.until(() => doomed.length === 8),
  )
  refused.refuse('denied')
  assert.match(await go.line('read failed:'), /reset/)

  const endsFirst = await nextStream()
  const last = new Collector(endsFirst)
  endsFirst.confirm()
  endsFirst.resume()
  await within(
    5_000,
    'its bytes',
    last.until(() => last.length === 9),
  )
  endsFirst.write(Buffer.from('I end'))
  endsFirst.end()
  assert.equal(await go.line('answer'), 'I end')
  await within(
    5_000,
    'its last bytes',
    last.until(() => last.closedInOrder),
  )
  assert.equal(last.bytes.toString(), 'end first, then I')

  // Its go-away, without streams left, ends the session on both sides.
  assert.equal((await within(5_000, 'the end', closed)).code, 'HM_TUNNEL_DRAINED')
  assert.equal(session.streamCount, 0)
  await go.line('session ended')
})

async function untilTruthy(look: () => unknown): Promise<void> {
  while (!look()) await new Promise((resolve) => setTimeout(resolve, 5))
}
