/**
 * Capture leaves no trace: rules are gone after a stop, removable after a crash, and those of others stay.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('on a host that has rules of its own', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')

  // What Docker and an administrator would have.
  for (const command of [
    'iptables -t nat -N DOCKER',
    'iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER',
    'iptables -t nat -A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE',
    'iptables -A INPUT -p tcp --dport 9999 -j DROP',
    'ip6tables -A INPUT -p tcp --dport 9999 -j DROP',
    'ipset create others hash:ip',
    'ipset add others 192.0.2.7',
  ])
    await a.namespace.run(...command.split(' '))
  const before = await a.namespace.rules()
  await mesh.up()
  await eventually(() => web.call('db'))

  await t.test(
    'the rules are there while the daemon runs, and foreign ones among them',
    async () => {
      const now = await a.namespace.rules()
      assert.match(now, /HOSTMESH/)
      for (const line of before.split('\n')) assert.ok(now.includes(line), `lost: ${line}`)
    },
  )

  await t.test('SIGTERM takes back every rule and leaves the others as they were', async () => {
    await a.daemon.stop()
    assert.equal(await a.namespace.rules(), before)
  })

  await t.test('after kill -9 the rules stay: nothing leaves in plaintext unasked', async () => {
    await a.daemon.start()
    await eventually(() => web.call('db'))
    await a.daemon.kill()
    assert.match(await a.namespace.rules(), /HOSTMESH/)
    await assert.rejects(web.callAddress(b.namespace.ip, 5432), { code: 'ECONNREFUSED' })
  })

  await t.test(
    'capture clear removes them without a daemon and without a configuration',
    async () => {
      const cleared = await a.daemon.command('capture', 'clear')
      assert.equal(cleared.code, 0, cleared.stderr)
      assert.equal(await a.namespace.rules(), before)
      const again = await a.daemon.command('capture', 'clear')
      assert.equal(again.code, 0, again.stderr)
      assert.equal(await a.namespace.rules(), before)
    },
  )

  await t.test('a daemon that finds the rules of a crashed one takes them over', async () => {
    await a.daemon.start()
    await a.daemon.kill()
    await a.daemon.start()
    await eventually(() => web.call('db'))
    await a.daemon.stop()
    assert.equal(await a.namespace.rules(), before)
  })
})
