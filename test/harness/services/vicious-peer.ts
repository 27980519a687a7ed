/**
 * A peer with a valid certificate and no manners, written from docs/tunnel-protocol.md with none of the code under test:
 * does one thing for so many milliseconds and tells what became of it. Comes again as soon as it is thrown out.
 */
import { readFileSync } from 'node:fs'
import { connect, type TLSSocket } from 'node:tls'
import type { ViciousMode, ViciousOutcome, ViciousTask } from '../vicious-peer.ts'

const task = JSON.parse(process.argv[2] ?? '') as ViciousTask
const identities = task.files.map(({ certificate, key }) => ({
  cert: readFileSync(certificate),
  key: readFileSync(key),
}))
type Certificates = (typeof identities)[number]
const endMs = performance.now() + task.forMs
const outcome: ViciousOutcome = { sessions: 0, opened: 0, refused: 0, thrownOut: 0, most: 0 }

const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex')
/** LOCAL command, no addresses, no TLVs. */
const PREFACE = Buffer.concat([SIGNATURE, Buffer.from([0x20, 0, 0, 0])])
const [DATA, WINDOW, PING] = [0, 1, 2]
const [SYN, ACK, RST] = [1, 2, 8]

function header(type: number, flags: number, id: number, length: number): Buffer {
  const bytes = Buffer.alloc(12)
  bytes[1] = type
  bytes[3] = flags
  bytes.writeUInt32BE(id, 4)
  bytes.writeUInt32BE(length, 8)
  return bytes
}

const opening = (id: number, payload: Buffer): Buffer =>
  Buffer.concat([header(DATA, SYN, id, payload.length), payload])

const begin = (id: number): Buffer => opening(id, SIGNATURE.subarray(0, 1))

/** What each mode that opens streams sends for one of them. */
const streamOf = {
  slots: begin,
  renewedslots: begin,
  openreset: (id) => Buffer.concat([opening(id, PREFACE), header(WINDOW, RST, id, 6)]),
  opendenied: (id) => opening(id, PREFACE),
  badpreface: (id) => opening(id, Buffer.from('GET / HTTP/1.1\r\n')),
  zerowindow: (id) => opening(id, Buffer.concat([PREFACE, Buffer.from('more\n')])),
} satisfies Partial<Record<ViciousMode, (id: number) => Buffer>>

function dial(certificates: Certificates): Promise<TLSSocket | undefined> {
  return new Promise((resolve) => {
    const socket = connect({
      host: task.ip,
      port: task.port,
      servername: task.serverName,
      ...certificates,
      ALPNProtocols: ['hostmesh/1'],
      rejectUnauthorized: false,
    })
    socket.on('error', () => undefined)
    socket.once('close', () => resolve(undefined))
    socket.once('secureConnect', () => resolve(socket))
  })
}

/** Reads what comes back, answers pings, and counts. */
function listen(socket: TLSSocket): void {
  let rest: Buffer = Buffer.alloc(0)
  socket.on('data', (chunk: Buffer) => {
    rest = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
    let at = 0
    while (rest.length - at >= 12) {
      const [type, flags, length] = [
        rest[at + 1] ?? 0,
        rest[at + 3] ?? 0,
        rest.readUInt32BE(at + 8),
      ]
      const payload = type === DATA ? length : 0
      if (rest.length - at < 12 + payload) break
      if (type === PING && (flags & ACK) === 0) socket.write(header(PING, ACK, 0, length))
      if ((flags & RST) !== 0) outcome.refused += 1
      at += 12 + payload
    }
    rest = rest.subarray(at)
  })
}

/** Mode `sessions`: tries, however long they take. */
const HANDSHAKES = 150

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms))

/** Sends what `framesOf` gives for a session, time after time, over one session after the other. */
async function flood(
  certificates: Certificates,
  pauseMs: number,
  framesOf: () => () => Buffer,
): Promise<void> {
  while (performance.now() < endMs) {
    const socket = await dial(certificates)
    if (socket === undefined) {
      outcome.thrownOut += 1
      await pause(20)
      continue
    }
    outcome.sessions += 1
    listen(socket)
    const frames = framesOf()
    while (!socket.destroyed && performance.now() < endMs) {
      const bytes = frames()
      if (bytes.length > 0 && !socket.write(bytes)) await drained(socket)
      await pause(pauseMs)
    }
    if (socket.destroyed) outcome.thrownOut += 1
    socket.destroy()
  }
}

const drained = (socket: TLSSocket): Promise<void> =>
  new Promise((resolve) => {
    const done = (): void => {
      socket.off('drain', done)
      socket.off('close', done)
      resolve()
    }
    socket.on('drain', done)
    socket.on('close', done)
  })

/** Opens streams, `first` of them at once and so many each further time, up to `most`. */
function openStreams(
  mode: keyof typeof streamOf,
  amounts: { first: number; each: number; most?: number },
): () => () => Buffer {
  const { first, each, most = Number.POSITIVE_INFINITY } = amounts
  return () => {
    let id = 1
    return () => {
      const frames: Buffer[] = []
      const count = id === 1 ? first : each
      for (let i = 0; i < count && id < 2 * most; i += 1, id += 2) frames.push(streamOf[mode](id))
      outcome.opened += frames.length
      return Buffer.concat(frames)
    }
  }
}

/** One stream, and credit for it by the byte. */
function giveCredit(): () => Buffer {
  const credit = Buffer.concat(Array.from({ length: 5_000 }, () => header(WINDOW, 0, 1, 1)))
  let isOpen = false
  return () => {
    if (isOpen) return credit
    isOpen = true
    outcome.opened += 1
    return begin(1)
  }
}

async function openSessions(certificates: Certificates): Promise<void> {
  const open = new Set<TLSSocket>()
  const living = (): number => [...open].filter(({ destroyed }) => !destroyed).length
  while (outcome.sessions + outcome.thrownOut < HANDSHAKES) {
    const dialed = await Promise.all(Array.from({ length: 10 }, () => dial(certificates)))
    for (const socket of dialed) {
      if (socket === undefined) {
        outcome.thrownOut += 1
        continue
      }
      outcome.sessions += 1
      open.add(socket)
      listen(socket)
    }
    await pause(20)
  }
  // What was refused after the handshake is closed soon; a busy machine takes its time.
  for (let i = 0; i < 100 && living() > 64; i += 1) await pause(100)
  outcome.most = living()
  for (const socket of open) socket.destroy()
}

async function keepSessions(certificates: Certificates): Promise<void> {
  const open: TLSSocket[] = []
  for (let i = 0; i < 64; i += 1) {
    const socket = await dial(certificates)
    if (socket === undefined) {
      outcome.thrownOut += 1
      continue
    }
    outcome.sessions += 1
    open.push(socket)
    listen(socket)
  }
  await pause(Math.max(1_000, endMs - performance.now()))
  outcome.most += open.filter(({ destroyed }) => !destroyed).length
  for (const socket of open) socket.destroy()
}

function act(certificates: Certificates): Promise<void> {
  switch (task.mode) {
    case 'sessions':
      return openSessions(certificates)
    case 'idle':
      return keepSessions(certificates)
    case 'renewedslots':
      return flood(certificates, 100, openStreams(task.mode, { first: 4_096, each: 80 }))
    case 'tinycredit':
      return flood(certificates, 0, giveCredit)
    case 'zerowindow':
      return flood(certificates, 5, openStreams(task.mode, { first: 250, each: 250, most: 1_500 }))
    case 'slots':
    case 'openreset':
    case 'opendenied':
    case 'badpreface':
      return flood(certificates, 5, openStreams(task.mode, { first: 250, each: 250 }))
  }
}

await Promise.all(identities.map(act))
process.send?.(outcome)
