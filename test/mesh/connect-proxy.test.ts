/**
 * Consul's own proxy (`consul connect proxy`, in the Consul binary) on the other side, in both directions:
 * a host without hostmesh and one with it are members of the same mesh.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'

import { startConnectProxy } from '../harness/connect-proxy.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('with a host that runs consul connect proxy', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'old'],
    catalog: 'consul',
    daemonless: ['old'],
  })
  const web = await mesh.host('a').service('web').start()
  // It names no server in its handshake: where a host has several services, each needs a tunnel port of its own.
  await mesh.host('b').service('db', { listens: 5432, connectPort: 15_444 }).start()
  await mesh.host('b').service('vault', { listens: 8200, connectPort: 15_445 }).start()
  const ledger = await mesh.host('old').service('ledger', { listens: 7000 }).start()
  await mesh.allow('ledger', 'db')
  await mesh.allow('web', 'ledger')
  await startConnectProxy(mesh, ledger.service, { db: 9191, vault: 9192 })
  await mesh.up()

  await t.test('it reaches a service behind hostmesh', async () => {
    const answer = await eventually(() => ledger.callPort(9191))
    assert.equal(answer.service, 'db')
    assert.ok(
      await mesh.host('b').daemon.metric('hostmesh_tcp_connections_opened_total', {
        source_service: 'ledger',
        destination_service: 'db',
      }),
    )
  })

  await t.test('it is denied where no intention allows it', async () => {
    await assert.rejects(ledger.callPort(9192))
    await eventually(async () => {
      const denied = await mesh.host('b').daemon.metric('hostmesh_tcp_connections_closed_total', {
        source_service: 'ledger',
        destination_service: 'vault',
        response_flags: 'DENY',
      })
      assert.ok(denied > 0)
    })
  })

  await t.test('hostmesh reaches a service behind it', async () => {
    const answer = await eventually(() => web.call('ledger'))
    assert.equal(answer.service, 'ledger')
    const probe = await mesh
      .host('a')
      .daemon.cli('explain', '--from', 'web', '--to', 'ledger', '--probe')
    assert.match(probe.stdout, /is a Connect sidecar: the TLS handshake holds/)
    const tunnels = (await mesh.host('a').daemon.peers()).tunnels
    assert.ok(
      tunnels.every(({ peerAddress }) => !peerAddress.endsWith(':7000')),
      'never in plaintext to the application itself',
    )
  })

  await t.test('bytes of a long conversation arrive unchanged in both directions', async () => {
    for (const dial of [() => web.dial('ledger'), () => ledger.workload.dial('127.0.0.1', 9191)]) {
      const socket = await dial()
      await socket.write('whole\n')
      await socket.readLine()
      // Consul's proxy drops what is on its way when either side ends: read all of it first.
      const [sent, bytes] = await Promise.all([
        socket.writePattern(2_000_003),
        socket.readBytes(2_000_003),
      ])
      assert.equal(createHash('sha256').update(bytes).digest('hex'), sent.sha256)
      await socket.end()
      assert.equal((await socket.readRest()).bytes, 0)
    }
  })
})
