/**
 * Who may claim an address. A real Consul whose ACLs deny by default, and somebody who may write the services
 * `evil*` and nothing else: he attracts, breaks and reads no traffic to an address that is not his.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'
import type { Consul } from '../harness/consul.ts'
import { httpOverSocket } from '../harness/daemon.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'
import { Workload } from '../harness/workload.ts'

/** A port of an application of b that is no service of the mesh, and one that Consul does not even know. */
const LEGACY_PORT = 3306
const UNKNOWN_PORT = 3307

for (const watch of ['all', 'on-demand'] as const)
  describe(`addresses with watch: ${watch}`, () => {
    let mesh: Mesh<Consul>
    let web: RunningService
    let db: RunningService
    let evilToken: string

    before(async () => {
      mesh = await startMesh({
        hosts: ['a', 'b', 'c'],
        catalog: 'consul',
        cluster: { acl: 'deny' },
        config: (host) => ({
          catalog: {
            kind: 'consul',
            watch: host === 'a' ? watch : 'all',
            tokenFile: mesh.catalog.acl.tokenFile(host),
          },
        }),
      })
      const [a, b, c] = [mesh.host('a'), mesh.host('b'), mesh.host('c')]
      web = await a.service('web').start()
      const { secret } = await mesh.catalog.acl.createToken('evil', [
        'service_prefix "evil" { policy = "write" }',
      ])
      evilToken = secret
      // Before anybody else, at a port that nobody wants.
      await evilPuts('/v1/agent/service/register', { ID: 'evil-old', Name: 'evil-old', Port: 9 })
      db = await b.service('db', { listens: 5432 }).start()
      await b.service('evil', { listens: 6666 }).start()
      await c.service('cache', { listens: 6379 }).start()
      await listen(LEGACY_PORT, 'legacy')
      await listen(UNKNOWN_PORT, 'unknown')
      await mesh.catalog.agent('b').put('/v1/agent/service/register', {
        Name: 'legacy',
        Port: LEGACY_PORT,
      })
      for (const destination of ['db', 'evil', 'cache']) await mesh.allow('web', destination)
      await mesh.up()
      // Followed from their first use on.
      for (const name of ['db', 'evil', 'cache'])
        await eventually(async () => {
          assert.equal((await web.callAddress((await addressOf(name)).ip, 1)).service, name)
        })
    })

    after(async () => mesh[Symbol.asyncDispose]())

    async function listen(port: number, name: string): Promise<void> {
      const workload = await Workload.start({
        namespace: mesh.host('b').namespace,
        uid: 65_534,
        service: name,
        instance: name,
      })
      mesh.own(workload)
      await workload.listen('::', port, 'echo')
    }

    /** The virtual address that an application on a is told. */
    async function addressOf(name: string): Promise<{ readonly ip: string }> {
      const ask = `const { Resolver } = require('node:dns/promises')
        const resolver = new Resolver()
        resolver.setServers(['127.0.0.1:15053'])
        resolver.resolve4('${name}.mesh').then(([ip]) => process.stdout.write(ip))`
      const { stdout, stderr } = await mesh.host('a').stranger().exec([process.execPath, '-e', ask])
      if (stdout === '') throw new Error(`No address of ${name}: ${stderr}`)
      return { ip: stdout }
    }

    const ip = (host: 'b' | 'c'): string => mesh.host(host).namespace.ip

    async function evilPuts(path: string, body: unknown): Promise<void> {
      const { socketPath } = mesh.catalog.agent('b')
      await httpOverSocket(socketPath, { path, method: 'PUT', body, token: evilToken })
    }

    async function evilProxy(id: string, change: object, proxy: object = {}): Promise<void> {
      await evilPuts('/v1/agent/service/register', {
        ID: id,
        Name: id,
        Kind: 'connect-proxy',
        Port: 15_443,
        Proxy: { DestinationServiceName: 'evil', DestinationServiceID: 'evil', ...proxy },
        ...change,
      })
    }

    async function evilLeaves(...ids: string[]): Promise<void> {
      for (const id of ids) await evilPuts(`/v1/agent/service/deregister/${id}`, undefined)
    }

    /** Who answers at an address, once a has heard of the last registration. */
    async function answersAfter(what: RegExp, host: 'b' | 'c', port: number): Promise<string> {
      await eventually(
        async () => {
          const { warnings = [] } = await mesh.host('a').daemon.status()
          assert.match(warnings.join('\n'), what)
        },
        { withinMs: 15_000 },
      )
      const answer = await web.callAddress(ip(host), port)
      return answer.service
    }

    test('each address leads to who listens there', async () => {
      assert.equal((await web.callAddress(ip('b'), 5432)).service, 'db')
      assert.equal((await web.callAddress(ip('b'), LEGACY_PORT)).service, 'legacy')
    })

    test('a proxy that names the port of somebody else on its host diverts nothing', async () => {
      for (const [port, owner] of [
        [LEGACY_PORT, 'legacy'],
        [UNKNOWN_PORT, 'unknown'],
        [5432, 'db'],
      ] as const) {
        await evilProxy('evil-x', { Address: ip('b') }, { LocalServicePort: port })
        const said = new RegExp(`instance b/evil of evil names [0-9.]+:${port}`)
        assert.equal(await answersAfter(said, 'b', port), owner)
      }
      await evilLeaves('evil-x')
    })

    test('a proxy at the address of another host diverts nothing there', async () => {
      await evilProxy(
        'evil-y',
        { Address: ip('c') },
        { DestinationServiceID: 'evil-y', LocalServicePort: 6379 },
      )
      assert.equal(await answersAfter(/evil-y of evil names/, 'c', 6379), 'cache')
      await evilLeaves('evil-y')
    })

    test('an instance at an address that is not of its node is none', async () => {
      await evilPuts('/v1/agent/service/register', {
        ID: 'evil-far',
        Name: 'evil',
        Address: ip('c'),
        Port: 6379,
      })
      const answer = await answersAfter(/"b"\/"evil-far" of evil are not captured/, 'c', 6379)
      assert.equal(answer, 'cache')
      await evilLeaves('evil-far')
    })

    test('an instance at the port of another service stays out, of the mesh or not, by agent or catalog', async () => {
      for (const [port, owner] of [
        [5432, 'db'],
        [LEGACY_PORT, 'legacy'],
      ] as const) {
        await evilPuts('/v1/agent/service/register', { ID: 'evil-in', Name: 'evil', Port: port })
        const said = new RegExp(`evil-in of evil claims [0-9.]+:${port}, where service ${owner}`)
        assert.equal(await answersAfter(said, 'b', port), owner)
        await evilLeaves('evil-in')
      }
      await evilPuts('/v1/catalog/register', {
        Node: 'c',
        Address: ip('c'),
        SkipNodeUpdate: true,
        Service: { ID: 'evil-there', Service: 'evil', Port: 6379 },
      })
      assert.equal(await answersAfter(/evil-there of evil claims/, 'c', 6379), 'cache')
    })

    test('what is established stays over a restart of the caller, and of the host that is attacked', async () => {
      await evilPuts('/v1/agent/service/register', { ID: 'evil-in', Name: 'evil', Port: 5432 })
      const { daemon } = mesh.host('a')
      for (let i = 0; i < 2; i += 1) {
        await daemon.stop()
        await daemon.start()
        await addressOf('evil')
        assert.equal(await answersAfter(/evil-in of evil claims/, 'b', 5432), 'db')
      }
      await db.leave()
      await db.join()
      await new Promise((resolve) => setTimeout(resolve, 1_500))
      assert.equal((await web.callAddress(ip('b'), 5432)).service, 'db')
      await evilLeaves('evil-in')
    })

    test('the virtual address of another service is not given away', async () => {
      const { ip: mine } = await addressOf('db')
      await evilProxy(
        'evil-v',
        { TaggedAddresses: { 'consul-virtual': { Address: mine, Port: 0 } } },
        { LocalServicePort: 6666 },
      )
      const { daemon } = mesh.host('a')
      for (let i = 0; i < 2; i += 1) {
        await new Promise((resolve) => setTimeout(resolve, 1_500))
        await addressOf('evil')
        assert.equal((await web.callAddress(mine, 5432)).service, 'db')
        assert.equal((await addressOf('db')).ip, mine)
        await daemon.stop()
        await daemon.start()
      }
      await evilLeaves('evil-v')
    })

    /** A host that has never seen this catalog, as every new one. */
    async function forgetAll(): Promise<void> {
      const { daemon } = mesh.host('a')
      await daemon.stop()
      await daemon.forget()
      await daemon.start()
    }

    /** Whether a call to an instance address has come through the mesh. */
    async function assertCarried(host: 'b' | 'c', port: number, service: string): Promise<void> {
      await eventually(
        async () => {
          const answer = await web.callAddress(ip(host), port)
          assert.equal(answer.service, service)
          assert.equal(answer.from, '::ffff:127.0.0.1', 'it was not captured')
        },
        { withinMs: 20_000 },
      )
    }

    test('an old registration that comes to the port of another service attracts nobody, on no host', async () => {
      await evilPuts('/v1/agent/service/register', { ID: 'evil-old', Name: 'evil-old', Port: 5432 })
      await evilProxy(
        'evil-old-proxy',
        {},
        { DestinationServiceName: 'evil-old', DestinationServiceID: 'evil-old' },
      )
      await assertCarried('b', 5432, 'db')
      await forgetAll()
      const said = /evil-old of evil-old claims [0-9.]+:5432, where service db is registered, too/
      await eventually(
        async () => {
          const { warnings = [] } = await mesh.host('a').daemon.status()
          assert.match(warnings.join('\n'), said)
        },
        { withinMs: 20_000 },
      )
      // Nobody can tell who was first: it is refused, and neither carried to evil-old nor let out.
      await assert.rejects(web.callAddress(ip('b'), 5432))
      assert.equal((await web.callAddress((await addressOf('db')).ip, 5432)).service, 'db')
      await evilLeaves('evil-old', 'evil-old-proxy')
      await assertCarried('b', 5432, 'db')
    })

    test('megabytes of tags at services of his own cost nobody else an address', async () => {
      const Tags = ['x'.repeat(500_000)]
      for (let i = 0; i < 40; i += 1)
        await evilPuts('/v1/catalog/register', {
          Node: 'c',
          Address: ip('c'),
          SkipNodeUpdate: true,
          Service: { ID: `evil-tags${i}`, Service: `evil-tags${i}`, Port: 9_000, Tags },
        })
      await forgetAll()
      await assertCarried('c', 6379, 'cache')
      await assertCarried('b', 5432, 'db')
    })
  })
