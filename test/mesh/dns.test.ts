/**
 * Names and first uses, with a real Consul, dnsmasq and the C library's resolver: a host follows nothing that
 * nobody uses, and a name or a virtual address is enough to reach a service.
 */
import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import { mustRun } from '../harness/owned-process.ts'
import { runResolving, startDnsmasq } from '../harness/resolver.ts'

/** Connects by name, asks who is there, and prints the answer: what any application does. */
const CLIENT = `
  const [host, port] = process.argv.slice(1)
  const socket = require('net').connect({ host, port: Number(port) })
  socket.on('connect', () => socket.write('hello\\n'))
  socket.setEncoding('utf8').once('data', (text) => { process.stdout.write(text); socket.end() })
  socket.on('error', (error) => { console.error(error.code); process.exit(1) })
`

async function followed(host: Host): Promise<readonly string[]> {
  return (await host.daemon.services()).services.map(({ name }) => name).toSorted()
}

function dig(host: Host, ...args: string[]): Promise<string> {
  return mustRun(host.namespace.inside(['dig', '+tries=1', '@127.0.0.1', '-p', '15053', ...args]))
}

test('names and on-demand watches', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'consul',
    config: { catalog: { kind: 'consul', watch: 'on-demand' } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  for (const [name, listens] of [
    ['db', 5432],
    ['queue', 5672],
    ['mail', 2525],
    ['cache', 6379],
  ] as const)
    await b.service(name, { listens }).start()
  await mesh.allow('web', '*')
  await mesh.up()
  // Names arrive in Consul before the proxies' are asked about: until then nobody has them.
  await eventually(async () => {
    const kept = await readFile(join(a.daemon.stateFolder, 'catalog.json'), 'utf8')
    for (const name of ['cache', 'db', 'mail', 'queue'])
      assert.ok(kept.includes(`{"name":"${name}","virtualIps"`), `${name} is not listed`)
  })
  const program = {
    namespace: a.namespace,
    uid: web.service.uid,
    folder: mesh.folder,
    nameservers: ['127.0.0.1'],
  }

  await t.test('a host follows no service that nobody uses', async () => {
    assert.deepEqual(await followed(a), [])
    assert.deepEqual(await followed(b), ['cache', 'db', 'mail', 'queue'], 'its own it does')
  })

  await t.test(
    'the first connection to a virtual address is carried, and follows the service',
    async () => {
      // The same on every host: a hash of the name, or Consul's (1.11 and later).
      const { ip } = await mesh.virtualAddress('cache', b)
      assert.equal((await web.callAddress(ip, 6379)).service, 'cache')
      assert.deepEqual(await followed(a), ['cache'])
    },
  )

  await t.test('the first question for a name is answered, and follows the service', async () => {
    const { ip } = await mesh.virtualAddress('db', b)
    assert.equal(await dig(a, '+short', 'db.mesh', 'A'), `${ip}\n`)
    await eventually(async () => assert.deepEqual(await followed(a), ['cache', 'db']))
    const { services } = await b.daemon.services()
    const ips = services.find(({ name }) => name === 'db')?.virtualIps ?? []
    // None where Consul gives the address: it gives one of IPv4.
    const ip6 = ips.filter((candidate) => candidate.includes(':')).map((one) => `${one}\n`)
    const asked = await dig(a, '+tcp', '+short', 'db.virtual.dc1.consul', 'AAAA')
    assert.equal(asked, ip6.join(''))
    assert.match(await dig(a, '_db._tcp.mesh', 'SRV'), /SRV\s+1 1 5432 db\.mesh\./)
  })

  await t.test('what the mesh does not have is NXDOMAIN, and is not followed', async () => {
    assert.match(await dig(a, 'nothing.mesh'), /NXDOMAIN/)
    assert.match(await dig(a, 'consul.mesh'), /NXDOMAIN/, 'a service without a mesh listener')
    assert.match(await dig(a, 'example.com'), /REFUSED/)
    assert.deepEqual(await followed(a), ['cache', 'db'])
  })

  await using outside = await startDnsmasq(a.namespace, '127.0.0.9', [
    '--address=/outside.example/192.0.2.10',
  ])
  await using dnsmasq = await startDnsmasq(a.namespace, '127.0.0.1', [
    '--server=/mesh/127.0.0.1#15053',
    '--server=/virtual.consul/127.0.0.1#15053',
    '--server=127.0.0.9',
  ])
  assert.ok(!outside.hasExited && !dnsmasq.hasExited)

  await t.test(
    'through dnsmasq an application resolves a name and reaches the service',
    async () => {
      for (const [name, port, service] of [
        ['queue.mesh', 5672, 'queue'],
        ['DB.Virtual.Consul', 5432, 'db'],
      ] as const) {
        const call = [process.execPath, '-e', CLIENT, name, `${port}`]
        // A name may have been asked for before it was listed: dnsmasq remembers that for five seconds.
        const called = await eventually(
          async () => {
            const attempt = await runResolving(program, call)
            assert.equal(attempt.code, 0, attempt.stderr)
            return attempt
          },
          { withinMs: 20_000 },
        )
        const answer = JSON.parse(called.stdout) as { service: string; from: string }
        assert.equal(answer.service, service)
      }
      assert.equal(
        await b.daemon.metric('hostmesh_tcp_connections_opened_total', {
          source_service: 'web',
          destination_service: 'queue',
        }),
        1,
        'it came through the mesh',
      )
    },
  )

  await t.test(
    'through dnsmasq other names are answered by others, and none of them reaches us',
    async () => {
      const before = await a.daemon.metric('hostmesh_dns_queries_total')
      const found = await runResolving(program, ['getent', 'ahostsv4', 'outside.example'])
      assert.match(found.stdout, /^192\.0\.2\.10\s/)
      assert.equal(await a.daemon.metric('hostmesh_dns_queries_total'), before)
    },
  )

  await t.test(
    'a service that appears is found although its name was asked for before',
    async () => {
      const missing = await runResolving(program, ['getent', 'hosts', 'late.mesh'])
      assert.notEqual(missing.code, 0)
      await mesh.catalog.agent('b').put('/v1/agent/service/register', {
        Name: 'late-proxy',
        Kind: 'connect-proxy',
        Port: 21_000,
        Proxy: { DestinationServiceName: 'late' },
      })
      await mesh.catalog.agent('b').put('/v1/agent/service/register', { Name: 'late', Port: 99 })
      await eventually(
        async () =>
          assert.equal((await runResolving(program, ['getent', 'hosts', 'late.mesh'])).code, 0),
        { withinMs: 20_000 },
      )
    },
  )

  await t.test('a service that nobody has used can be explained', async () => {
    assert.ok(!(await followed(a)).includes('mail'))
    const { code, stdout } = await a.daemon.cli('explain', '--from', 'web', '--to', 'mail:2525')
    assert.equal(code, 0, stdout)
    assert.match(stdout, /mail/)
  })

  await t.test('status says where questions are taken', async () => {
    assert.equal((await a.daemon.status()).dns.address, '127.0.0.1:15053')
  })
})

test('a plain resolv.conf: the daemon first, and what it refuses is asked of the next', async () => {
  await using mesh = await startMesh({
    hosts: ['a'],
    catalog: 'file',
    config: { dns: { port: 53 } },
  })
  const a = mesh.host('a')
  const web = await a.service('web').start()
  await a.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await using outside = await startDnsmasq(a.namespace, '127.0.0.9', [
    '--address=/outside.example/192.0.2.10',
  ])
  assert.ok(!outside.hasExited)
  const program = {
    namespace: a.namespace,
    uid: web.service.uid,
    folder: mesh.folder,
    nameservers: ['127.0.0.1', '127.0.0.9'],
  }
  const { ip: ip6 } = await mesh.virtualAddress('db', a, 6)
  const asked = ['dig', '+short', '@127.0.0.1', 'db.mesh', 'AAAA']
  assert.equal(await mustRun(a.namespace.inside(asked)), `${ip6}\n`)
  const called = await runResolving(program, [process.execPath, '-e', CLIENT, 'db.mesh', '5432'])
  assert.equal(called.code, 0, called.stderr)
  assert.match(called.stdout, /"service":"db"/)
  const found = await runResolving(program, ['getent', 'ahostsv4', 'outside.example'])
  assert.match(found.stdout, /^192\.0\.2\.10\s/)
  assert.ok((await a.daemon.metric('hostmesh_dns_queries_total', { outcome: 'refused' })) > 0)
})
