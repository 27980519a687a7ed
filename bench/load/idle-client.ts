/**
 * A program of its own, run on host A: opens many connections, sends one request on each and holds them
 * all open. Writes `ready` when every one has had its answer; ends with code 1 when one is lost.
 *
 * Arguments: host, port, count, and the numeric user to become (0 stays root).
 */
import { connect, type Socket } from 'node:net'

const [host = '', port = '', count = '', uid = '0'] = process.argv.slice(2)

/** Connections that may be on their way at the same time, so that no listen queue overflows. */
const IN_FLIGHT = 50

// Now and not before: this file and the runtime may lie where only root can read.
if (uid !== '0') {
  process.setgroups?.([])
  process.setgid?.(Number(uid))
  process.setuid?.(Number(uid))
}

const held: Socket[] = []
let answered = 0

function openNext(): void {
  if (held.length >= Number(count)) return
  const socket = connect(Number(port), host)
  held.push(socket)
  socket.once('data', (answer) => {
    if (!answer.includes(' 200 ')) fail(new Error(`Unexpected answer: ${answer.toString()}`))
    answered += 1
    if (answered === Number(count)) process.stdout.write('ready\n')
    else openNext()
  })
  socket.on('error', fail)
  socket.on('close', () => fail(new Error('A connection was closed')))
  socket.write('GET / HTTP/1.1\r\nHost: backend\r\n\r\n')
}

function fail(error: Error): void {
  process.stderr.write(`${error.message} (${answered} of ${count} connections were answered)\n`)
  process.exitCode = 1
  for (const socket of held) {
    socket.removeAllListeners()
    socket.on('error', () => undefined)
    socket.destroy()
  }
}

for (let i = 0; i < IN_FLIGHT; i += 1) openNext()
