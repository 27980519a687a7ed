/**
 * A stand-in for the data plane in capture tests: listens on ports in a network namespace and tells each
 * caller, as one line of JSON, which port it landed on and what the kernel says it asked for.
 *
 * Usage: node capture-listener.ts PORT...   Prints "ready" when all ports listen; runs until killed.
 */
import { once } from 'node:events'
import { createServer } from 'node:net'
import { originalDestination, socketFd } from '../../src/dataplane/capture/original-destination.ts'

for (const text of process.argv.slice(2)) {
  const port = Number(text)
  const server = createServer((socket) => {
    const fd = socketFd(socket)
    const original = fd === undefined ? undefined : originalDestination(fd)
    socket.on('error', () => undefined)
    socket.end(`${JSON.stringify({ port, original })}\n`)
  })
  server.listen(port, '::')
  await once(server, 'listening')
}
process.stdout.write('ready\n')
