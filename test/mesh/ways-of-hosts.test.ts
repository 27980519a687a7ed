/**
 * Ways that packets take on hosts as they are: routing rules of others, broadcasts, instances in containers of the
 * own host, and plain connections that come from where an instance is.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import { Container } from '../harness/container.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { OwnedProcess } from '../harness/owned-process.ts'

const BACKENDS = ['nftables', 'iptables'] as const

/** Sends to everybody, by the device and by whatever the routes say. */
const SHOUT = `
import socket
for device in (b'eth0', b''):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    if device: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
    s.sendto(b'by device' if device else b'by route', ('255.255.255.255', 9967))
`
const HEAR = `
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('', 9967))
print('ready', flush=True)
while True: print(s.recv(100).decode(), flush=True)
`

/** Dials from a given port, says a word, prints the answer. */
const DIAL_FROM = `
import socket, sys
s = socket.socket()
s.settimeout(8)
s.bind(('', int(sys.argv[3])))
s.connect((sys.argv[1], int(sys.argv[2])))
for word in (b'one\\n', b'two\\n'):
    s.sendall(word)
    print(s.recv(1000).decode().strip())
`

for (const backend of BACKENDS)
  test(`a host with routes of its own, by ${backend}`, async (t) => {
    await using mesh = await startMesh({
      hosts: ['a', 'b'],
      catalog: 'file',
      config: { capture: { mode: 'on', backend } },
    })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    const web = await a.service('web', { listens: 8_080 }).start()
    await b.service('db', { listens: 5_432 }).start()
    await b.service('gone', { listens: 5_433 }).join()
    await mesh.allow('web', 'db')
    await mesh.up()
    await eventually(() => web.call('db'))

    await t.test('rules of others that lead its callers elsewhere', async () => {
      for (const version of ['-4', '-6']) {
        const inHost = (...words: string[]) => a.namespace.run('ip', version, ...words)
        const uids = `${web.service.uid}-${web.service.uid}`
        await inHost('rule', 'add', 'uidrange', uids, 'lookup', '100', 'priority', '1000')
        const gateway = version === '-4' ? '10.88.0.254' : 'fd88::fe'
        await inHost('route', 'add', 'default', 'via', gateway, 'table', '100')
      }
      try {
        for (const family of [4, 6] as const) {
          const { service } = await web.call('db', family)
          assert.equal(service, 'db')
        }
        assert.equal((await web.callAddress(b.namespace.ip, 5_432)).service, 'db')
      } finally {
        for (const version of ['-4', '-6']) {
          await a.namespace.run('ip', version, 'rule', 'del', 'priority', '1000')
          await a.namespace.run('ip', version, 'route', 'flush', 'table', '100')
        }
      }
    })

    await t.test('what is sent to everybody is sent', async () => {
      await using listener = await OwnedProcess.start(
        b.namespace.inside(['/usr/bin/python3', '-c', HEAR]),
        { name: 'listener' },
      )
      await eventually(() => assert.equal(listener.output, 'ready\n'))
      await a.namespace.run('/usr/bin/python3', '-c', SHOUT)
      await eventually(() => assert.equal(listener.output, 'ready\nby device\nby route\n'))
    })

    // By iptables it is reset: docs/capture.md, "What stays".
    if (backend === 'iptables') return
    await t.test('a plain connection from a port where an instance is, or was', async () => {
      const words = ['/usr/bin/python3', '-c', DIAL_FROM, a.namespace.ip, '8080', '5433']
      const answers = await b.namespace.run(...words)
      assert.match(answers, /"service":"web"[^\n]*\ntwo\n/)
    })
  })

test('an instance in a container of the own host, which is a workload itself', async (t) => {
  await using undo = new AsyncDisposableStack()
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const box = undo.use(await Container.attach(a, 2))
  await a.namespace.run('sysctl', '-qw', 'net.bridge.bridge-nf-call-iptables=0')
  await a.namespace.run('sysctl', '-qw', 'net.ipv4.ip_local_port_range=40000 40099')
  const web = await a.service('web').start()
  const boxed = await a.service('boxed', { listens: 7_000, container: box }).start()
  const published = a.service('published', { listens: 8_080 })
  const delivery: Record<string, string> = { boxed: box.ip, published: a.namespace.ip }
  const { services = [] } = a.config()
  a.configure({
    capture: { mode: 'on', backend: 'nftables' },
    services: services.map((service) => ({ ...service, address: delivery[service.name] })),
  })
  await b.service('db', { listens: 5_432 }).start()
  await published.join()
  await mesh.catalog.amend('a', 'boxed', { ServiceAddress: box.ip })
  await mesh.allow('web', '*')
  await mesh.allow('boxed', 'db')
  await mesh.up()
  await eventually(() => boxed.call('db'))

  await t.test(
    'is reached at its address, from ports that captured callers have just used',
    async () => {
      for (let round = 0; round < 60; round += 1) {
        const socket = await web.workload.dial(box.ip, 7_000)
        await socket.write('hello\n')
        assert.match(await socket.readLine(), /"service":"boxed"/)
        // The port is free again at once, and its four numbers are remembered for a while.
        await socket.reset()
      }
    },
  )

  await t.test('is reached by the port that the host publishes for it', async () => {
    await boxed.workload.listen('::', 7_001, 'echo')
    const nft = (...words: string[]): Promise<string> => a.namespace.run('nft', ...words)
    await nft('add', 'table', 'ip', 'ports')
    await nft('add chain ip ports out { type nat hook output priority -100; }')
    const to = `${box.ip}:7001`
    await nft(`add rule ip ports out ip daddr ${a.namespace.ip} tcp dport 8080 dnat to ${to}`)
    try {
      const { service, from } = await web.callAddress(a.namespace.ip, 8_080)
      assert.equal(service, 'boxed')
      assert.match(from, /172\.30\.0\.1|10\.88\.0\.1/)
      assert.equal(
        await a.daemon.metric('hostmesh_tcp_connections_opened_total', {
          destination_service: 'published',
        }),
        1,
      )
    } finally {
      await nft('delete', 'table', 'ip', 'ports')
    }
  })

  await t.test('where the kernel marks answers like what they answer, they arrive', async () => {
    const set = async (value: 0 | 1): Promise<void> => {
      for (const name of ['ipv4.tcp_fwmark_accept', 'ipv4.fwmark_reflect', 'ipv6.fwmark_reflect'])
        await a.namespace.run('sysctl', '-qw', `net.${name}=${value}`)
    }
    await set(1)
    for (const caller of [web, boxed]) {
      assert.equal((await caller.call('db')).service, 'db')
      assert.equal((await caller.callAddress(b.namespace.ip, 5_432)).service, 'db')
    }
    assert.equal((await web.call('db', 6)).service, 'db')
    await set(0)
  })

  await t.test(
    'where the kernel looks for ways back by the mark it calls, and that it cannot be called is said',
    async () => {
      await a.namespace.run('sysctl', '-qw', 'net.ipv4.conf.all.src_valid_mark=1')
      await a.daemon.command('capture', 'apply')
      assert.equal((await boxed.call('db')).service, 'db')
      const { stdout } = await a.daemon.cli('status')
      assert.match(stdout, /reach no instance at 172\.30\.0\.2/)
    },
  )
})
