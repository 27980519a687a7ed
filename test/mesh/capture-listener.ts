/**
 * A stand-in for the data plane in capture tests: listens on ports in a network namespace and tells each
 * caller, as one line of JSON, which port it landed on and what the kernel says it asked for.
 *
 * Usage: node capture-listener.ts transparent|redirect PORT...   Prints "ready" when all ports listen; runs until killed.
 */
import { once } from 'node:events'
import { createServer } from 'node:net'
import { destinationOf } from '../../src/dataplane/capture/original-destination.ts'
import { openListeningSocket } from '../../src/lib/listening-socket.ts'

const [, , by = '', ...ports] = process.argv
for (const text of ports) {
  const port = Number(text)
  // TPROXY leads to loopback; REDIRECT to any address.
  for (const ip of by === 'transparent' ? ['127.0.0.1', '::1'] : ['::']) {
    const server = createServer((socket) => {
      const original = destinationOf(socket, by === 'transparent' ? by : 'redirect')
      socket.on('error', () => undefined)
      socket.end(`${JSON.stringify({ port, original })}\n`)
    })
    server.listen({ fd: openListeningSocket({ kind: 'tcp', ip, port, transparent: true }) })
    await once(server, 'listening')
  }
}
process.stdout.write('ready\n')
