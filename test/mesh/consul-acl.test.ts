/**
 * Whole daemons on a Consul with ACLs that deny by default, with exactly the policy that docs/consul.md prints.
 */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { test } from 'node:test'

import type { Consul } from '../harness/consul.ts'
import { documentedPolicy } from '../harness/consul-acl.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { keepCalling } from '../harness/steady-calls.ts'

test('with ACLs that deny by default', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'consul',
    cluster: { acl: 'deny' },
  })
  const web = await mesh.host('a').service('web', { listens: 8080 }).start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.up()

  await t.test('without an intention a call is denied, with one it is allowed', async () => {
    await assert.rejects(web.call('db'))
    await mesh.allow('web', 'db')
    await eventually(() => web.call('db'))
    await mesh.deny('web', 'db')
    await eventually(() => assert.rejects(web.call('db')))
    await mesh.allow('web', 'db')
    await eventually(() => web.call('db'))
  })

  await t.test(
    'the policy of the document is enough: nothing is wrong on either host',
    async () => {
      for (const name of ['a', 'b'])
        await eventually(async () => assert.deepEqual(await problemsOf(mesh, name), []))
    },
  )

  await t.test('a token is replaced, and the old one deleted, without a failed call', async () => {
    const { acl, server } = mesh.catalog
    await using calls = keepCalling(() => web.call('db'))
    for (const name of ['a', 'b']) {
      const old = acl.tokenOf(name)
      const service = name === 'a' ? 'web' : 'db'
      const fresh = await acl.createToken(`hostmesh-${name}`, documentedPolicy(service))
      await acl.giveToken(name, fresh)
      await acl.deleteToken(old)
    }
    await calls.more(200)

    // Registration: what somebody takes away comes back.
    await mesh.catalog.agent('b').put('/v1/agent/service/deregister/db-hostmesh', undefined)
    await eventually(async () => {
      const found = (await server.get('/v1/health/connect/db')) as unknown[]
      assert.equal(found.length, 1)
    })

    // Renewal: a new root makes every certificate a new one.
    const before = await serialOf(mesh, 'b')
    await server.put('/v1/connect/ca/configuration', {
      Provider: 'consul',
      Config: {
        PrivateKey: generateKeyPairSync('rsa', { modulusLength: 2048 })
          .privateKey.export({ type: 'pkcs1', format: 'pem' })
          .toString(),
        PrivateKeyType: 'rsa',
        PrivateKeyBits: 2048,
        LeafCertTTL: '72h',
      },
    })
    await eventually(async () => assert.notEqual(await serialOf(mesh, 'b'), before), {
      withinMs: 60_000,
    })
    for (const name of ['a', 'b'])
      await eventually(async () => assert.deepEqual(await problemsOf(mesh, name), []))
    assert.deepEqual(await calls.failures(), [])
  })

  // From 1.9 on Consul says its default policy with every answer.
  const { Config } = (await mesh.catalog.server.get('/v1/agent/self')) as {
    Config: { Version: string }
  }
  const isOld = /^1\.[0-8]\./.test(Config.Version)
  const nobodyFindsWeb = async (): Promise<void> =>
    assert.deepEqual(await mesh.catalog.server.get('/v1/health/connect/web'), [])

  const needs: Readonly<Record<string, Broken>> = {
    'node_prefix "" read': {
      what: 'nobody can be reached',
      holds: () => assert.rejects(web.call('db')),
    },
    'service_prefix "" read': {
      what: 'no other service is known',
      holds: async () => {
        const { services } = await mesh.host('a').daemon.services()
        assert.equal(services.find(({ name }) => name === 'db')?.endpoints.length ?? 0, 0)
      },
    },
    'agent_prefix "" read': {
      what: 'the default policy is not known',
      holds: async () => {
        const problems = await problemsOf(mesh, 'a')
        assert.match(problems.join('\n'), /does not tell its default policy/)
      },
    },
    'service "web" write': {
      what: 'its own service is nobody',
      holds: async () => {
        await nobodyFindsWeb()
        // A newer agent gives a certificate that it has issued before to any token.
        if (!isOld) return
        const { awaited } = await mesh.host('a').daemon.status()
        assert.ok(awaited.includes('the certificate of web'), awaited.join())
      },
    },
    'service "web-hostmesh" write': {
      what: 'nobody finds its own service',
      holds: nobodyFindsWeb,
    },
  }

  await t.test('the document has the lines that this test knows, and no other', () => {
    assert.deepEqual(documentedPolicy('web').map(keyOf).toSorted(), Object.keys(needs).toSorted())
  })

  async function restartWithout(line: string): Promise<string> {
    const { acl } = mesh.catalog
    const { daemon } = mesh.host('a')
    await daemon.stop()
    const without = documentedPolicy('web').filter((other) => other !== line)
    // A policy of its own: agents remember for a while what a policy says.
    const policy = `without-${keyOf(line).replace(/\W+/g, '-')}`
    await acl.giveToken('a', await acl.createToken(policy, without))
    await daemon.forget()
    await daemon.launch()
    return policy
  }

  for (const line of documentedPolicy('web')) {
    if (line.startsWith('agent_prefix') && !isOld) {
      await t.test('without the line about the agent nothing is missed', async () => {
        await restartWithout(line)
        await eventually(async () => assert.deepEqual(await problemsOf(mesh, 'a'), []))
        await eventually(() => web.call('db'))
      })
      continue
    }
    const broken = needs[keyOf(line)]
    await t.test(
      `without ${keyOf(line)}, ${broken?.what}, and the status names that line`,
      async () => {
        assert.ok(broken !== undefined)
        const { acl } = mesh.catalog
        const { daemon } = mesh.host('a')
        const policy = await restartWithout(line)
        await eventually(
          async () => {
            const said = (await problemsOf(mesh, 'a')).join('\n')
            assert.ok(said.includes(line.replace(/\s+/g, ' ').trim()), `the status says: ${said}`)
          },
          { withinMs: 30_000 },
        )
        await broken.holds()
        assert.notEqual((await daemon.cli('status')).code, 0)

        await acl.setPolicy(policy, documentedPolicy('web'))
        await eventually(async () => assert.deepEqual(await problemsOf(mesh, 'a'), []), {
          withinMs: 60_000,
        })
        await eventually(() => web.call('db'), { withinMs: 30_000 })
      },
    )
  }
})

interface Broken {
  readonly what: string
  readonly holds: () => Promise<void>
}

/** `service   "web" { policy = "write" }` as `service "web" write`. */
function keyOf(line: string): string {
  const [, kind, name, policy] = /^(\w+)\s+"([^"]*)"\s*\{ policy = "(\w+)" \}$/.exec(line) ?? []
  return `${kind} "${name}" ${policy}`
}

async function problemsOf(mesh: Mesh<Consul>, host: string): Promise<readonly string[]> {
  const { problems, awaited } = await mesh.host(host).daemon.status()
  return [...problems.map(({ message }) => message), ...awaited]
}

async function serialOf(mesh: Mesh<Consul>, host: string): Promise<string | undefined> {
  const { leaves } = await mesh.host(host).daemon.certs()
  return leaves[0]?.serialNumber
}
