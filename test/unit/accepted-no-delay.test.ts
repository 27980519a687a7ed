/** What the kernel says of connections that were accepted: asked with getsockopt(2). */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { test } from 'node:test'
import { socketFd } from '../../src/dataplane/capture/original-destination.ts'
import { setNoDelayOfAccepted } from '../../src/lib/accepted-no-delay.ts'
import { loadGetSockOpt } from '../../src/lib/ffi.ts'

const IPPROTO_TCP = 6
const TCP_NODELAY = 1

function hasNoDelay(socket: Socket): boolean {
  const value = new Uint8Array(4)
  const length = new Uint32Array([4])
  const code = loadGetSockOpt()(socketFd(socket) ?? -1, IPPROTO_TCP, TCP_NODELAY, value, length)
  assert.equal(code, 0)
  return value[0] !== 0
}

/** A connection that a new server has accepted, after `prepare`. */
async function accepted(
  prepare: (server: ReturnType<typeof createServer>) => void,
): Promise<{ socket: Socket; close: () => void }> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  prepare(server)
  const client = connect((server.address() as AddressInfo).port, '127.0.0.1')
  const [socket] = (await once(server, 'connection')) as [Socket]
  const close = (): void => {
    client.destroy()
    socket.destroy()
    server.close()
  }
  return { socket, close }
}

test('an accepted connection sends small writes at once', async () => {
  const { socket, close } = await accepted(setNoDelayOfAccepted)
  assert.equal(hasNoDelay(socket), true)
  close()
})

test('it is the listening socket that has it: Node sets nothing on the accepted one', async () => {
  const { socket, close } = await accepted((server) => {
    setNoDelayOfAccepted(server)
    assert.equal(Reflect.get(server, 'noDelay'), false)
  })
  assert.equal(hasNoDelay(socket), true)
  close()
})

test('without it, an accepted connection does not', async () => {
  const { socket, close } = await accepted(() => undefined)
  assert.equal(hasNoDelay(socket), false)
  close()
})
