/**
 * An aggregator that wants to harm the hosts that report to it: `hostile-aggregator.ts PORT MODE`. `hang` takes every
 * connection, never answers and never ends it; `rage` answers each connection with another kind of nonsense.
 */
import { createServer, type Socket } from 'node:net'

const [port, mode] = [Number(process.argv[2]), process.argv[3]]

const answers: readonly ((socket: Socket) => void)[] = [
  flood,
  (socket) =>
    socket.write(
      'HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n',
    ),
  (socket) => socket.write(Buffer.alloc(1_000_000, 0xff)),
  (socket) => {
    socket.write('HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"accepted":', () =>
      socket.resetAndDestroy(),
    )
  },
  (socket) =>
    socket.write('HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n'),
  (socket) => socket.write('HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n'),
  (socket) => answer(socket, '{"accepted":9007199254740991}'),
  (socket) => answer(socket, '{"accepted":1e308}'),
  drip,
]

let connections = 0

createServer({ allowHalfOpen: true }, (socket) => {
  connections += 1
  process.stdout.write(`connection ${connections}\n`)
  socket.on('error', () => {})
  socket.resume()
  if (mode === 'hang') return
  const act = answers[connections % answers.length]
  socket.once('data', () => act?.(socket))
}).listen(port, '127.0.0.1')

function answer(socket: Socket, body: string): void {
  socket.write(`HTTP/1.1 200 OK\r\ncontent-length: ${body.length}\r\n\r\n${body}`)
}

/** 100 MB, as fast as they are taken. */
function flood(socket: Socket): void {
  const chunk = Buffer.alloc(1_000_000, 0x20)
  let left = 100
  socket.write('HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n')
  const more = (): void => {
    left -= 1
    if (left >= 0 && !socket.destroyed) socket.write(chunk, more)
  }
  more()
}

/** A byte a second. */
function drip(socket: Socket): void {
  const text = `HTTP/1.1 200 OK\r\nx-filler: ${'x'.repeat(600)}\r\n\r\n`
  let at = 0
  const timer = setInterval(() => {
    socket.write(text.slice(at, at + 1))
    at += 1
  }, 1_000)
  socket.once('close', () => clearInterval(timer))
}
