/**
 * What capture leaves behind: after a stop and after a crash rules that refuse, after `capture clear` nothing; and the
 * rules of others stay as they are.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

for (const [backend, trace] of [
  ['nftables', /table inet hostmesh/],
  ['iptables', /HOSTMESH/],
] as const)
  test(`on a host that has rules of its own, by ${backend}`, async (t) => {
    await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    a.configure({ capture: { mode: 'on', backend } })
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
      'nft add table inet others',
    ])
      await a.namespace.run(...command.split(' '))
    const before = await a.namespace.rules()
    await mesh.up()
    await eventually(() => web.call('db'))

    const clear = async (): Promise<void> => {
      const cleared = await a.daemon.command('capture', 'clear')
      assert.equal(cleared.code, 0, cleared.stderr)
      assert.equal(await a.namespace.rules(), before)
    }

    await t.test(
      'the rules are there while the daemon runs, and foreign ones among them',
      async () => {
        const now = await a.namespace.rules()
        assert.match(now, trace)
        for (const line of before.split('\n')) assert.ok(now.includes(line), `lost: ${line}`)
      },
    )

    await t.test('after SIGTERM the rules stay, and refuse', async () => {
      const rules = await a.namespace.rules()
      await a.daemon.stop()
      assert.equal(await a.namespace.rules(), rules)
      await assert.rejects(web.callAddress(b.namespace.ip, 5432), { code: 'ECONNREFUSED' })
    })

    await t.test('capture clear removes them without a daemon, also twice', async () => {
      await clear()
      await clear()
      assert.match(
        (await web.callAddress(b.namespace.ip, 5432)).from,
        new RegExp(`${a.namespace.ip}$`),
      )
    })

    await t.test('after kill -9 the rules stay: nothing leaves in plaintext unasked', async () => {
      await a.daemon.start()
      await eventually(() => web.call('db'))
      await a.daemon.kill()
      assert.match(await a.namespace.rules(), trace)
      await assert.rejects(web.callAddress(b.namespace.ip, 5432), { code: 'ECONNREFUSED' })
    })

    await t.test('a daemon that finds the rules of a crashed one takes them over', async () => {
      await a.daemon.start()
      await eventually(() => web.call('db'))
      await a.daemon.stop()
      await clear()
    })
  })
