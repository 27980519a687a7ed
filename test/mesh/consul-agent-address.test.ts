/**
 * Ways to an agent that asks for more than an address: HTTPS with a certificate of an own CA in both directions,
 * its unix socket, and both told by the environment variables of Consul's own command.
 */
import assert from 'node:assert/strict'
import { copyFile, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { mustRun } from '../harness/owned-process.ts'

test('an agent that takes nothing but TLS, and asks for a certificate', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'hostmesh-agent-tls-'))
  await using undo = new AsyncDisposableStack()
  undo.defer(() => rm(folder, { recursive: true, force: true }))
  const consulTls = (...args: string[]): Promise<string> =>
    mustRun(['env', '-C', folder, 'consul', 'tls', ...args])
  await consulTls('ca', 'create')
  await consulTls('cert', 'create', '-server')
  // One for agents, one for daemons.
  await consulTls('cert', 'create', '-client')
  await consulTls('cert', 'create', '-client')
  const file = (name: string): string => join(folder, name)
  const caFile = file('consul-agent-ca.pem')
  const [certFile, keyFile] = [file('daemon.pem'), file('daemon-key.pem')]
  await copyFile(file('dc1-client-consul-1.pem'), certFile)
  await copyFile(file('dc1-client-consul-1-key.pem'), keyFile)

  const catalog = {
    kind: 'consul',
    watch: 'all',
    address: 'https://127.0.0.1:8501',
    caFile,
    certFile,
    keyFile,
  } as const
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'consul',
    cluster: {
      settingsOf: (node) => ({
        ca_file: caFile,
        cert_file: file(`dc1-${node}-consul-0.pem`),
        key_file: file(`dc1-${node}-consul-0-key.pem`),
        verify_incoming: true,
        verify_outgoing: true,
        verify_server_hostname: true,
        ports: { dns: -1, grpc: -1, https: 8501 },
      }),
    },
    config: { catalog },
  })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  const configured = (changes: object): Promise<void> =>
    mesh.host('a').daemon.writeConfig({
      ...mesh.host('a').config(),
      catalog: { ...catalog, ...changes },
    })

  for (const { claim, changes, says } of [
    {
      claim: 'without the roots of the agent no answer is accepted',
      changes: { caFile: undefined },
      says: /certificate|self.signed/i,
    },
    {
      claim: 'without a certificate of its own the daemon is refused by the agent',
      changes: { certFile: undefined, keyFile: undefined },
      says: /Cannot reach Consul at https.*(certificate required|bad certificate|ECONNRESET|alert)/i,
    },
    {
      claim: 'a name that is not in the certificate of the agent is refused',
      changes: { tlsServerName: 'another.example' },
      says: /does not match certificate/,
    },
  ])
    await t.test(claim, async () => {
      await mesh.prepare(mesh.host('a'))
      await configured(changes)
      const { daemon } = mesh.host('a')
      await daemon.launch()
      await eventually(async () => {
        const { problems } = (await daemon.status()).catalog
        assert.match(problems.join('\n'), says)
      })
      assert.equal((await daemon.status()).ready, false)
      await daemon.stop()
      await daemon.forget()
    })

  await t.test('with roots, certificate and name the mesh comes up and calls arrive', async () => {
    for (const name of ['a', 'b']) {
      const { daemon } = mesh.host(name)
      await mesh.prepare(mesh.host(name))
      await daemon.writeConfig({
        ...mesh.host(name).config(),
        catalog: { ...catalog, tlsServerName: 'client.dc1.consul' },
      })
      await daemon.start()
    }
    await mesh.settled()
    await eventually(() => web.call('db'))
    assert.deepEqual((await mesh.host('a').daemon.status()).catalog.problems, [])
  })

  await t.test(
    'a renewed certificate is used without a restart, half of a pair is not',
    async () => {
      const { daemon } = mesh.host('a')
      await copyFile(file('dc1-client-consul-0-key.pem'), keyFile)
      await eventually(async () => {
        const { problems } = (await daemon.status()).catalog
        assert.match(problems.join('\n'), /Cannot use .*daemon\.pem.* for Consul/)
      })
      await web.call('db')
      await copyFile(file('dc1-client-consul-0.pem'), certFile)
      await eventually(async () => {
        assert.deepEqual((await daemon.status()).catalog.problems, [])
      })
      await mesh.catalog.agent('a').kill()
      await mesh.catalog.agent('a').start()
      await eventually(async () => assert.deepEqual((await daemon.status()).catalog.problems, []), {
        withinMs: 40_000,
      })
      await web.call('db')
    },
  )
})

test("Consul's variables lead a daemon to the unix socket of an agent with ACLs", async () => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'consul',
    cluster: { acl: 'deny' },
    config: { catalog: { kind: 'consul', watch: 'all' } },
  })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await startWith(mesh, 'a', (host) => [
    `CONSUL_HTTP_ADDR=unix://${mesh.catalog.agent(host).socketPath}`,
    `CONSUL_HTTP_TOKEN_FILE=${mesh.catalog.acl.tokenFile(host)}`,
  ])
  await startWith(mesh, 'b', (host) => [
    'CONSUL_HTTP_ADDR=127.0.0.1:8500',
    `CONSUL_HTTP_TOKEN=${mesh.catalog.acl.tokenOf(host).secret}`,
  ])
  await mesh.settled()
  await eventually(() => web.call('db'))
  for (const [host, address] of [
    ['a', `consul unix://${mesh.catalog.agent('a').socketPath}`],
    ['b', 'consul http://127.0.0.1:8500'],
  ] as const) {
    const { catalog } = await mesh.host(host).daemon.status()
    assert.equal(catalog.description, address)
    assert.deepEqual(catalog.problems, [])
  }
})

async function startWith(
  mesh: Mesh,
  name: string,
  environment: (host: string) => readonly string[],
): Promise<void> {
  const host = mesh.host(name)
  await mesh.prepare(host)
  await host.daemon.start(['env', ...environment(name)])
}
