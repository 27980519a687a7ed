/**
 * A host whose outgoing connections have used up all ports: who gets none is told so, everybody else goes on, and all is well again
 * when ports are free. Between hosts it takes a port for each tunnel, not for each connection.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startPair } from '../harness/pair.ts'

/** No more than so many connections to one address and port. */
async function leavePorts(host: Host, count: number): Promise<void> {
  const first = 61_000
  await host.namespace.run(
    'sysctl',
    '-qw',
    `net.ipv4.ip_local_port_range=${first} ${first + count - 1}`,
  )
}

test('no ports left towards the application: those beyond are refused and counted, the others go on', async () => {
  await using pair = await startPair()
  const { mesh, web, db } = pair
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const first = await eventually(() => web.connectTo(db))
  await leavePorts(b, 6)
  // The first one's port is none of them.
  const open = [first]
  while (open.length < 1 + 6) open.push(await web.connectTo(db))

  const refusedBefore = await b.daemon.metric('hostmesh_tcp_connections_closed_total', {
    reporter: 'destination',
    response_flags: 'UF',
  })
  const beyond = await Promise.all(
    Array.from({ length: 4 }, async () => {
      try {
        return (await (await web.dial('db')).readRest()).ending
      } catch (error) {
        // The same reset, heard by a busy caller before it has seen that it was connected.
        if (/connect ECONNRESET/.test(String(error))) return 'ECONNRESET'
        throw error
      }
    }),
  )
  assert.deepEqual([...new Set(beyond)], ['ECONNRESET'])
  const refused = await b.daemon.metric('hostmesh_tcp_connections_closed_total', {
    reporter: 'destination',
    response_flags: 'UF',
  })
  assert.ok(refused > refusedBefore, b.daemon.log)
  assert.match(b.daemon.log, /EADDRNOTAVAIL/)

  for (const [caller, called] of open) {
    await caller.write('ping')
    assert.equal(await called.read(4), 'ping')
    await called.write('pong')
    assert.equal(await caller.read(4), 'pong')
  }
  for (const [caller, called] of open) {
    await caller.end()
    await called.end()
    assert.equal((await caller.readRest()).ending, 'end')
  }
  const [caller, called] = await eventually(() => web.connectTo(db))
  await caller.reset()
  await called.readRest()
  assert.equal((await a.daemon.status()).ready, true)
})

test('between hosts many connections take a port or two', async () => {
  await using pair = await startPair({ behavior: 'echo' })
  const { mesh, web } = pair
  const a = mesh.host('a')
  await eventually(() => web.call('db'))
  await leavePorts(a, 40)
  const open = await Promise.all(Array.from({ length: 30 }, () => web.dial('db')))
  await Promise.all(
    open.map(async (socket) => {
      await socket.write('some line\n')
      assert.match(await socket.readLine(), /"service":"db"/)
    }),
  )
  const tunnels = (
    await a.namespace.run('ss', '-Htn', 'state', 'established', 'dport', '=', '15443')
  )
    .split('\n')
    .filter((line) => line !== '')
  assert.ok(tunnels.length <= 2, tunnels.join('\n'))
  await Promise.all(open.map((socket) => socket.reset()))
})
