/**
 * Passes connections on from one place to another, so that a browser of this machine reaches what listens on a host of
 * the demo. A unix socket has a path, and no network namespace:
 *
 * ```
 *   browser -> 127.0.0.1:PORT | forward | unix socket | forward, in the host's namespace | 127.0.0.1:15190 of the host
 * ```
 *
 * As a program, for the part in the namespace: `node forward.ts SOCKET PORT`.
 */
import { connect, createServer, type Server, type Socket } from 'node:net'

/** A port on loopback, or the path of a unix socket. */
export type Place = number | string

/**
 * Listens at `from` and passes every connection on to `to`. 0 is any free port.
 * @throws when it cannot listen
 */
export async function forward(from: Place, to: Place): Promise<Server> {
  const server = createServer((client) => {
    const target = typeof to === 'string' ? connect(to) : connect(to, '127.0.0.1')
    client.pipe(target).pipe(client)
    endTogether(client, target)
  })
  const { promise, resolve, reject } = Promise.withResolvers<void>()
  server.once('error', reject)
  if (typeof from === 'string') server.listen(from, resolve)
  else server.listen(from, '127.0.0.1', resolve)
  await promise
  return server
}

/** An error of one side ends the other as well. */
function endTogether(one: Socket, other: Socket): void {
  for (const [socket, peer] of [
    [one, other],
    [other, one],
  ] as const) {
    // Whoever asked sees the end of the connection.
    socket.on('error', () => peer.destroy())
    socket.on('close', () => peer.destroy())
  }
}

if (import.meta.main) {
  const [socket = '', port = ''] = process.argv.slice(2)
  await forward(socket, Number(port))
}
