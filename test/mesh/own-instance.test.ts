/**
 * The address of an instance on the caller's own host is captured like any other: the same policy decides, whether the
 * application listens on loopback alone or on all addresses.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

for (const backend of ['nftables', 'iptables'] as const)
  test(`an instance on the own host, by ${backend}`, async (t) => {
    await using mesh = await startMesh({
      hosts: ['a', 'b'],
      catalog: 'file',
      config: { capture: { mode: 'on', backend } },
    })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    const callers = await Promise.all(
      [a, b].map(async (host) => ({
        host,
        web: await host.service('web').start(),
        batch: await host.service('batch').start(),
      })),
    )
    const open = await b.service('open', { listens: 8_081 }).start()
    const closed = await b.service('closed', { listens: 8_082 }).start()
    // What most applications do: they listen where only their own host reaches them.
    await closed.workload.ask({ op: 'unlisten' })
    await closed.workload.listen('127.0.0.1', 8_082, 'echo')
    for (const { service } of [open, closed]) await mesh.allow('web', service.name)
    await mesh.up()

    for (const { host, web, batch } of callers)
      for (const [name, port] of [
        ['open', 8_081],
        ['closed', 8_082],
      ] as const) {
        await t.test(`web on ${host.name} may reach ${name}`, async () => {
          const { service } = await eventually(() => web.callAddress(b.namespace.ip, port))
          assert.equal(service, name)
        })
        await t.test(`batch on ${host.name} may not reach ${name}`, async () => {
          await assert.rejects(batch.callAddress(b.namespace.ip, port), { code: 'ECONNRESET' })
        })
      }
  })
