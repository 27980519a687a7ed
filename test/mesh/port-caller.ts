/**
 * A caller for attribution tests: connects from given local ports, tells where it landed, and breaks off by a reset, so
 * that the port is free again at once.
 *
 * Reads orders from standard input, one line of JSON each, and answers each by one line.
 */
import { connect } from 'node:net'
import { createInterface } from 'node:readline'

/** One order: `count` connections to `ip` and `port`, from the local ports beginning with `first`. */
export interface Order {
  readonly ip: string
  readonly port: number
  readonly first: number
  readonly count: number
}

/** How often each thing happened: `15100` landed on that capture port, `ECONNREFUSED` failed so. */
export type Landings = Readonly<Record<string, number>>

const AT_ONCE = 20

for await (const line of createInterface({ input: process.stdin })) {
  const { ip, port, first, count } = JSON.parse(line) as Order
  const landings: Record<string, number> = {}
  let next = first
  const work = async (): Promise<void> => {
    while (next < first + count) {
      const localPort = next
      next += 1
      const landing = await callFrom(localPort, ip, port)
      landings[landing] = (landings[landing] ?? 0) + 1
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, work))
  process.stdout.write(`${JSON.stringify(landings)}\n`)
}

function callFrom(localPort: number, ip: string, port: number): Promise<string> {
  return new Promise((resolve) => {
    let text = ''
    const socket = connect({ host: ip, port, localPort })
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString()
      if (!text.includes('\n')) return
      socket.resetAndDestroy()
      resolve(String((JSON.parse(text) as { port: number }).port))
    })
    socket.on('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? error.message))
    socket.on('end', () => resolve('END'))
  })
}
