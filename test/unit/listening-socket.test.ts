/** Listening sockets by descriptor: what the kernel says of them and of the connections that they take. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { afterEach, test } from 'node:test'
import { errorCode } from '../../src/lib/errors.ts'
import {
  closeDescriptor,
  duplicateDescriptor,
  isSocketOf,
  openListeningSocket,
  type SocketSpec,
} from '../../src/lib/listening-socket.ts'
import { requireNativeCalls } from '../../src/lib/native.ts'
import { descriptorOf } from '../../src/lib/node-internals.ts'
import { findPortHolder, holdersIn } from '../../src/lib/port-holder.ts'
import { freePort } from '../integration/dataplane-fixtures.ts'

const SOL_IP = 0
const IP_TRANSPARENT = 19
const SOL_IPV6 = 41
const IPV6_TRANSPARENT = 75
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const TCP_KEEPIDLE = 4
const TCP_KEEPINTVL = 5
const TCP_KEEPCNT = 6
const SOL_SOCKET = 1
const SO_KEEPALIVE = 9

const opened: number[] = []

afterEach(() => {
  for (const fd of opened.splice(0)) closeDescriptor(fd)
})

async function open(
  spec: Partial<SocketSpec> = {},
): Promise<{ readonly fd: number; readonly spec: SocketSpec }> {
  const whole: SocketSpec = { kind: 'tcp', ip: '127.0.0.1', port: await freePort(), ...spec }
  const fd = openListeningSocket(whole)
  opened.push(fd)
  return { fd, spec: whole }
}

async function serve(fd: number, onSocket: (socket: Socket) => void): Promise<Server> {
  const server = createServer(onSocket).listen({ fd: duplicateDescriptor(fd) })
  await once(server, 'listening')
  return server
}

function option(fd: number, level: number, name: number): number | undefined {
  const value = new Uint8Array(4)
  const code = requireNativeCalls('').getsockopt(fd, level, name, value, new Uint32Array([4]))
  return code === 0 ? value[0] : undefined
}

test('an accepted connection sends small writes at once: it inherits that from the socket', async () => {
  const { fd, spec } = await open()
  const accepted = Promise.withResolvers<Socket>()
  const server = await serve(fd, accepted.resolve)
  assert.equal(Reflect.get(server, 'noDelay'), false)
  const client = connect(spec.port, '127.0.0.1')
  const socket = await accepted.promise
  assert.equal(option(descriptorOf(socket), IPPROTO_TCP, TCP_NODELAY), 1)
  client.destroy()
  socket.destroy()
  server.close()
})

test('an accepted connection is asked after when nothing moves: it inherits that, too', async () => {
  const { fd, spec } = await open()
  const accepted = Promise.withResolvers<Socket>()
  const server = await serve(fd, accepted.resolve)
  const client = connect(spec.port, '127.0.0.1')
  const socket = await accepted.promise
  const of = descriptorOf(socket)
  assert.equal(option(of, SOL_SOCKET, SO_KEEPALIVE), 1)
  assert.deepEqual(
    [TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT].map((name) => option(of, IPPROTO_TCP, name)),
    [30, 10, 3],
  )
  client.destroy()
  socket.destroy()
  server.close()
})

test('a connection that comes while nobody accepts waits for the next server', async () => {
  const { fd, spec } = await open()
  const first = await serve(fd, (socket) => socket.end('first'))
  first.close()
  await once(first, 'close')
  const client = connect(spec.port, '127.0.0.1')
  await once(client, 'connect')
  const second = await serve(fd, (socket) => socket.end('second'))
  const [answer] = (await once(client, 'data')) as [Buffer]
  assert.equal(answer.toString(), 'second')
  client.destroy()
  second.close()
})

test('several sockets of one user have the same address, one of another kind does not', async () => {
  const { spec } = await open()
  await open(spec)
  const stranger = createServer().listen({ host: spec.ip, port: spec.port })
  const [error] = (await once(stranger, 'error')) as [unknown]
  assert.equal(errorCode(error), 'EADDRINUSE')
})

test('a transparent socket is that for each family it takes', async () => {
  const v4 = await open({ transparent: true })
  assert.equal(option(v4.fd, SOL_IP, IP_TRANSPARENT), 1)
  const v6 = await open({ ip: '::1', transparent: true })
  assert.equal(option(v6.fd, SOL_IPV6, IPV6_TRANSPARENT), 1)
  const both = await open({ ip: '::', transparent: true })
  assert.equal(option(both.fd, SOL_IP, IP_TRANSPARENT), 1)
  assert.equal(option(both.fd, SOL_IPV6, IPV6_TRANSPARENT), 1)
  const plain = await open()
  assert.equal(option(plain.fd, SOL_IP, IP_TRANSPARENT), 0)
})

test('a socket is recognized by kind, address and port', async () => {
  for (const ip of ['127.0.0.1', '::1', '::']) {
    const { fd, spec } = await open({ ip })
    assert.ok(isSocketOf(fd, spec))
    assert.ok(!isSocketOf(fd, { ...spec, port: spec.port + 1 }))
    assert.ok(!isSocketOf(fd, { ...spec, kind: 'udp' }))
    for (const other of ['127.0.0.1', '127.0.0.2', '::1', '::'])
      if (other !== ip) assert.ok(!isSocketOf(fd, { ...spec, ip: other }), `${ip} is not ${other}`)
  }
  const udp = await open({ kind: 'udp' })
  assert.ok(isSocketOf(udp.fd, udp.spec))
  assert.ok(!isSocketOf(0, udp.spec), 'what is no socket at all')
})

test('what cannot be opened is an error with the code of the system, and leaks nothing', async () => {
  const port = await freePort()
  const blocker = createServer().listen({ host: '127.0.0.1', port })
  await once(blocker, 'listening')
  for (const [spec, code] of [
    [{ kind: 'tcp', ip: '127.0.0.1', port }, 'EADDRINUSE'],
    [{ kind: 'tcp', ip: '192.0.2.7', port }, 'EADDRNOTAVAIL'],
  ] as const)
    assert.throws(
      () => openListeningSocket(spec),
      (error) => errorCode(error) === code,
    )
  const probe = openListeningSocket({ kind: 'tcp', ip: '127.0.0.2', port })
  opened.push(probe)
  const again = duplicateDescriptor(probe)
  opened.push(again)
  assert.equal(again, probe + 1, 'the descriptors of the failed ones are free')
  blocker.close()
})

test('who holds a port is found, be it a listener or a connection', async () => {
  const { spec } = await open()
  const listener = findPortHolder('tcp', spec.port)
  assert.equal(listener?.kind, 'listener')
  assert.equal(listener?.process?.pid, process.pid)
  const server = await serve(opened[0] ?? -1, () => undefined)
  const client = connect(spec.port, '127.0.0.1')
  await once(client, 'connect')
  const connection = findPortHolder('tcp', client.localPort ?? 0)
  assert.equal(connection?.kind, 'connection')
  assert.equal(connection?.remotePort, spec.port)
  assert.equal(connection?.uid, process.getuid?.())
  client.destroy()
  server.close()
  assert.equal(findPortHolder('tcp', await freePort()), undefined)
})

test('the table of the kernel is read by port, not by what looks like it', () => {
  const table = [
    '  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode',
    '   0: 0100007F:3AFC 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4711 1',
    '   1: 0100007F:1F90 0100007F:3AFC 01 00000000:00000000 00:00000000 00000000     0        0 4712 1',
    '   2: 0100000A:3AFC 0200000A:1F90 06 00000000:00000000 03:00000000 00000000    33        0 0 3',
  ].join('\n')
  assert.deepEqual(holdersIn(table, 'tcp', 0x3afc), [
    { kind: 'listener', uid: 1000, inode: 4711, remotePort: 0 },
    { kind: 'connection', uid: 33, inode: 0, remotePort: 8080 },
  ])
  assert.deepEqual(holdersIn(table, 'tcp', 15_101), [])
})
