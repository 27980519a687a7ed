/**
 * Hosts that are not fresh: firewalls that drop by default, IPv6 switched off, a daemon that runs as a user of its own
 * and a root who looks at its rules.
 */
import assert from 'node:assert/strict'
import { chmod, chown } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout } from 'node:timers/promises'

import { ListeningSockets, type PlannedSocket } from '../../src/daemon/listening-sockets.ts'
import { openListeningSocket } from '../../src/lib/listening-socket.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import { freePort } from '../integration/dataplane-fixtures.ts'

const DB_PORT = 5_432

/** Denies by default, and keeps no record of connections. */
const FIREWALL = [
  '-A OUTPUT -o lo -j ACCEPT',
  '-A INPUT -i lo -j ACCEPT',
  '-A INPUT -p ipv6-icmp -j ACCEPT',
  '-A OUTPUT -p ipv6-icmp -j ACCEPT',
  // What an operator gives the tunnel.
  '-A OUTPUT -p tcp --dport 15443 -j ACCEPT',
  '-A INPUT -p tcp --sport 15443 -j ACCEPT',
  '-P OUTPUT DROP',
  '-P INPUT DROP',
]

/** How often the rules of iptables are looked at, and a bit. */
const LOOKED_MS = 2_500

test('a firewall that drops all but what it names', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('web', 'db')
  const run = (command: string): Promise<string> => a.namespace.run(...command.split(' '))
  await denyByDefault(a)
  const before = await run('iptables -S')
  await mesh.up()

  const isServed = async (): Promise<void> => {
    for (const family of [4, 6] as const) await eventually(() => web.call('db', family))
    await eventually(() => web.callAddress(b.namespace.ip, DB_PORT))
  }

  await t.test('by iptables: what is diverted passes', isServed)

  await t.test('and again after somebody has taken our line away', async () => {
    const line = (await run('iptables -S OUTPUT')).split('\n').find((text) => /hostmesh/.test(text))
    assert.ok(line !== undefined)
    await run(`iptables ${line.replace('-A', '-D').replaceAll('"', '')}`)
    await eventually(async () => assert.match(await run('iptables -S OUTPUT'), /hostmesh/))
    await isServed()
  })

  await t.test('by a native table: it is named, with what lets it pass', async () => {
    await run('nft add table inet fw')
    await run('nft add chain inet fw out { type filter hook output priority 0; policy drop; }')
    await run('nft add rule inet fw out oif lo accept')
    await run('nft add rule inet fw out meta l4proto ipv6-icmp accept')
    await run('nft add rule inet fw out tcp dport 15443 accept')
    const problem = await eventually(
      async () => {
        const { problems } = await a.daemon.status()
        const found = problems.find(({ code }) => code === 'HM_CAPTURE_BLOCKED')
        assert.ok(found, JSON.stringify(problems))
        return found
      },
      { withinMs: 30_000 },
    )
    assert.match(problem.message, /chain out of table inet fw/)
    await a.namespace.run('sh', '-c', problem.hint)
    await isServed()
    await eventually(async () => assert.deepEqual((await a.daemon.status()).problems, []), {
      withinMs: 30_000,
    })
    await run('nft delete table inet fw')
  })

  await a.daemon.stop()
  assert.equal((await a.daemon.command('capture', 'clear')).code, 0)
  assert.equal(await run('iptables -S'), before)
})

test('a firewall that keeps no record of connections lets pass what is diverted by iptables', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  a.configure({ capture: { mode: 'on', backend: 'iptables' } })
  const web = await a.service('web').start()
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await denyByDefault(a)
  for (const family of [4, 6] as const) await eventually(() => web.call('db', family))
  await eventually(() => web.callAddress(b.namespace.ip, DB_PORT))
  await a.namespace.run('iptables', '-F')
  await a.namespace.run('ip6tables', '-F')
})

for (const backend of ['nftables', 'iptables'] as const) {
  test(`with IPv6 switched off the daemon starts, and IPv4 is captured, by ${backend}`, async () => {
    await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    a.configure({ capture: { mode: 'on', backend } })
    const web = await a.service('web').start()
    await b.service('db', { listens: DB_PORT }).start()
    await mesh.allow('web', 'db')
    for (const which of ['all', 'default', 'lo'])
      await a.namespace.run('sysctl', '-qw', `net.ipv6.conf.${which}.disable_ipv6=1`)
    await mesh.up()
    await eventually(() => web.call('db'))
    await eventually(() => web.callAddress(b.namespace.ip, DB_PORT))
    await setTimeout(LOOKED_MS)
    const { ready, problems } = await a.daemon.status()
    assert.deepEqual({ ready, problems }, { ready: true, problems: [] })
    assert.doesNotMatch(a.daemon.log, /applied again/)
  })

  test(`on a kernel that has no IPv6 sockets the daemon serves IPv4, by ${backend}`, async () => {
    await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    a.configure({ capture: { mode: 'on', backend } })
    const web = await a.service('web').start()
    await b.service('db', { listens: DB_PORT }).start()
    await mesh.allow('web', 'db')
    await mesh.up(['python3', join(import.meta.dirname, '../harness/services/without-ipv6.py')])
    await eventually(() => web.call('db'))
    for (let i = 0; i < 20; i += 1) await web.call('db')
    await web.callAddress(b.namespace.ip, DB_PORT)
    const { ready, problems } = await a.daemon.status()
    assert.deepEqual({ ready, problems }, { ready: true, problems: [] })
  })
}

test('root sees the rules of a daemon of its own user as they are, and does not exempt itself', async () => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: DB_PORT }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  // As if another user than root had started it: who made the socket is who runs.
  const shown = await a.daemon.command('capture', 'show', '--config', a.daemon.configPath)
  assert.match(shown.stdout, /The rules are as planned/)
  await chown(a.daemon.socketPath, 2_900, 2_900)
  await chmod(a.daemon.socketPath, 0o666)
  const plan = await a.daemon.command('capture', 'plan', '--config', a.daemon.configPath)
  assert.match(plan.stdout, /skuid 2900/)
})

test('a socket that a daemon opened where the kernel has no IPv6 serves its successor', async () => {
  const port = await freePort()
  const plan: PlannedSocket = {
    name: 'tunnel/0',
    kind: 'tcp',
    address: { ip: '::', port },
    transparent: true,
    isOptional: false,
  }
  const fd = openListeningSocket({ kind: 'tcp', ip: '0.0.0.0', port, transparent: true })
  using sockets = new ListeningSockets(silentLog, { inherited: [{ name: plan.name, fd }] })
  assert.equal(sockets.take(plan), fd)
})

async function denyByDefault({ namespace }: Host): Promise<void> {
  for (const tool of ['iptables', 'ip6tables'])
    for (const line of FIREWALL)
      await namespace.run(tool, ...line.split(' ')).catch((error: unknown) => {
        if (!line.includes('icmp') || tool === 'ip6tables') throw error
      })
}
