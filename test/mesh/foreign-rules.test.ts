/**
 * Rules of other programs that break what is diverted on its way to the daemon: capture cannot mend them, so the host says which rule it is, and
 * what to do, in place of connections that time out for no reason.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

const DB_PORT = 5_432

test('native rules of others on the way of what is diverted are named, and a host is well again without them', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const nft = (command: string): Promise<string> => a.namespace.run('nft', command)
  const problemOf = (code: string): Promise<{ message: string; hint: string }> =>
    eventually(
      async () => {
        const { problems } = await a.daemon.status()
        const found = problems.find((problem) => problem.code === code)
        assert.ok(found, JSON.stringify(problems))
        return found
      },
      { withinMs: 30_000 },
    )
  const isWell = (): Promise<unknown> =>
    eventually(async () => assert.deepEqual((await a.daemon.status()).problems, []), {
      withinMs: 30_000,
    })

  await t.test('a chain on the input hook that drops, also loopback', async () => {
    await nft('add table inet fw')
    await nft('add chain inet fw in { type filter hook input priority 0; policy accept; }')
    await nft('add rule inet fw in tcp sport 15443 accept')
    await nft('add rule inet fw in meta l4proto ipv6-icmp accept')
    await nft('add rule inet fw in counter drop')
    const problem = await problemOf('HM_CAPTURE_BLOCKED')
    assert.match(problem.message, /chain in of table inet fw .* none accepts loopback/)
    await a.namespace.run('sh', '-c', problem.hint)
    await isWell()
    assert.equal((await web.call('db')).service, 'db')
    await nft('delete table inet fw')
  })

  for (const [what, where, add, remove] of [
    [
      'a native rule',
      /chain pre of table inet vpn/,
      'nft add table inet vpn; nft "add chain inet vpn pre { type filter hook prerouting priority mangle; }"; nft add rule inet vpn pre meta mark set ct mark',
      'nft delete table inet vpn',
    ],
    [
      'one of iptables',
      /mangle table of iptables/,
      'iptables -t mangle -A PREROUTING -j CONNMARK --restore-mark',
      'iptables -t mangle -D PREROUTING -j CONNMARK --restore-mark',
    ],
  ] as const)
    await t.test(`${what} that writes over the mark`, async () => {
      await a.namespace.run('sh', '-ec', add)
      assert.match((await problemOf('HM_CAPTURE_MARK_CLASH')).message, where)
      await a.namespace.run('sh', '-ec', remove)
      await isWell()
      assert.equal((await web.call('db')).service, 'db')
    })
})
