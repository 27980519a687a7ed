/**
 * A caller that never stops: a new connection every 20 ms, each with a canary, and one more at once when it has been
 * halted (SIGSTOP) and goes on. Prints a line for each that was answered: the port on which it landed.
 *
 * Usage: node steady-caller.ts IP PORT CANARY
 */
import { connect } from 'node:net'

const EVERY_MS = 20
const [, , host = '', port = '', canary = ''] = process.argv
let serial = 0

setInterval(() => {
  serial += 1
  const socket = connect({ host, port: Number(port) })
  socket.write(`${canary}-${serial}\n`)
  socket.on('data', (chunk: Buffer) => {
    process.stdout.write(`${String((JSON.parse(chunk.toString()) as { port: number }).port)}\n`)
    socket.end()
  })
  socket.on('error', (error: NodeJS.ErrnoException) => process.stdout.write(`${error.code}\n`))
}, EVERY_MS)
