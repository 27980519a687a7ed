/**
 * The thread of the echo service that round trips are measured with.
 */
import { createServer } from 'node:net'
import { parentPort } from 'node:worker_threads'
import { ECHO_DIRECT } from './scene.ts'

const server = createServer({ noDelay: true }, (socket) => {
  socket.on('error', () => undefined)
  socket.pipe(socket)
})
server.listen(ECHO_DIRECT, '127.0.0.1', () => parentPort?.postMessage('ready'))
