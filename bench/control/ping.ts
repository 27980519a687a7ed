/**
 * The thread that measures round trips: two connections to the same echo service, one through the daemon and one
 * beside it, a byte there and back every two milliseconds on each. A message with
 * a length in milliseconds starts a measurement; its two distributions are the answer.
 */

import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { parentPort } from 'node:worker_threads'
import type { Pair } from './delay.ts'
import { distribution } from './distribution.ts'
import { ECHO_DIRECT, ECHO_THROUGH } from './scene.ts'

const PAUSE_MS = 2

parentPort?.on('message', (lengthMs: number) => {
  void measure(lengthMs).then((pair) => parentPort?.postMessage(pair))
})
parentPort?.postMessage('ready')

async function measure(lengthMs: number): Promise<Pair> {
  const through = await open(ECHO_THROUGH)
  const direct = await open(ECHO_DIRECT)
  const times: { through: number[]; direct: number[] } = { through: [], direct: [] }
  const endMs = performance.now() + lengthMs
  while (performance.now() < endMs) {
    times.through.push(await roundTrip(through))
    times.direct.push(await roundTrip(direct))
    await delay(PAUSE_MS)
  }
  through.destroy()
  direct.destroy()
  return { through: distribution(times.through), direct: distribution(times.direct) }
}

async function open(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', noDelay: true })
  await once(socket, 'connect')
  return socket
}

async function roundTrip(socket: Socket): Promise<number> {
  const startedMs = performance.now()
  socket.write('x')
  await once(socket, 'data')
  return performance.now() - startedMs
}
