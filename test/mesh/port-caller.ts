/**
 * A caller for attribution tests: connects from given local ports, tells where it landed, and breaks off by a reset, or
 * has the other side do so, so that the port is free again at once.
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
  /** Whether it says something and waits until it is reset. */
  readonly isDenied: boolean
}

/** How often each thing happened: `15100` landed on that capture port, `ECONNREFUSED` failed so. */
export type Landings = Readonly<Record<string, number>>

const AT_ONCE = 20

for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line) as Order
  const { first, count } = order
  const landings: Record<string, number> = {}
  let next = first
  const work = async (): Promise<void> => {
    while (next < first + count) {
      const localPort = next
      next += 1
      const landing = await callFrom(localPort, order)
      landings[landing] = (landings[landing] ?? 0) + 1
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, work))
  process.stdout.write(`${JSON.stringify(landings)}\n`)
}

function callFrom(localPort: number, { ip, port, isDenied }: Order): Promise<string> {
  return new Promise((resolve) => {
    let text = ''
    let landing: string | undefined
    const socket = connect({ host: ip, port, localPort })
    socket.on('data', (chunk: Buffer) => {
      text += chunk.toString()
      if (!text.includes('\n')) return
      landing = String((JSON.parse(text) as { port: number }).port)
      if (isDenied) socket.write('x')
      else {
        socket.resetAndDestroy()
        resolve(landing)
      }
    })
    socket.on('error', (error: NodeJS.ErrnoException) =>
      resolve(landing !== undefined && isDenied ? landing : (error.code ?? error.message)),
    )
    socket.on('end', () => resolve('END'))
  })
}
