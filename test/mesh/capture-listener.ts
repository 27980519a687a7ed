/**
 * A stand-in for the data plane in capture tests: listens on ports in a network namespace and tells each
 * caller, as one line of JSON, which port it landed on and what the kernel says it asked for.
 *
 * Usage: node capture-listener.ts transparent|redirect|denying|plain PORT...   Prints "ready" when all ports listen; runs
 * until killed. By `denying` a redirected caller that answers is reset, as one that the data plane refuses; `plain` is
 * somebody else's program, whose sockets are as any.
 */
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { destinationOf } from '../../src/dataplane/capture/original-destination.ts'
import { callerOf, forgetRedirected } from '../../src/dataplane/capture/tracking.ts'
import { openListeningSocket } from '../../src/lib/listening-socket.ts'

const [, , by = '', ...ports] = process.argv
const capturedBy = by === 'transparent' ? by : 'redirect'
for (const text of ports) {
  const port = Number(text)
  // TPROXY leads to loopback; REDIRECT to any address.
  for (const ip of by === 'transparent' ? ['127.0.0.1', '::1'] : ['::']) {
    const server = createServer((socket) => {
      const original = destinationOf(socket, capturedBy)
      const line = `${JSON.stringify({ port, original })}\n`
      socket.on('error', () => undefined)
      if (by === 'denying') {
        socket.write(line)
        socket.once('data', () => deny(socket))
      } else socket.end(line)
    })
    const transparent = by !== 'plain'
    server.listen({ fd: openListeningSocket({ kind: 'tcp', ip, port, transparent }) })
    await once(server, 'listening')
  }
}
process.stdout.write('ready\n')

function deny(socket: Socket): void {
  const caller = callerOf(socket)
  const wanted = destinationOf(socket, 'redirect')
  socket.resetAndDestroy()
  if (caller !== undefined && wanted !== undefined) forgetRedirected(caller, wanted)
}
