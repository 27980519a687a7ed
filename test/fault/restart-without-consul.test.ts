/**
 * A daemon that is killed and started again while Consul is gone serves what it knew: at once, to the
 * same callers, no more and no less; and it says that it only remembers. When Consul is back, all is live again.
 */
import assert from 'node:assert/strict'
import { readdir, readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { StatePart } from '../../src/model/admin.ts'
import { eventually, patient } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'

test('a restart while Consul is gone', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'consul' })
  const hosts: readonly Host[] = ['a', 'b'].map((name) => mesh.host(name))
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start(echo)
  await b.service('secret', { listens: 7007 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  await assert.rejects(web.call('secret'))
  const address = await mesh.virtualAddress('db', a)
  const partsOf = async (host: Host): Promise<readonly StatePart[]> =>
    (await host.daemon.status()).state.parts
  const statesOf = async (host: Host): Promise<readonly string[]> =>
    (await partsOf(host)).map(({ state }) => state)
  // Nothing on host a takes calls, so it has no policy to know.
  const expected: Record<string, string[]> = {
    a: ['live', 'none', 'live'],
    b: ['live', 'live', 'live'],
  }
  for (const host of hosts)
    await eventually(async () => assert.deepEqual(await statesOf(host), expected[host.name]))
  // Written about a second after the last change, later on a busy machine; this crash gives no time to write.
  await eventually(async () =>
    assert.deepEqual(await keptBy(a), { services: 2, policies: 0, keys: 1 }),
  )
  await eventually(async () =>
    assert.deepEqual(await keptBy(b), { services: 2, policies: 2, keys: 2 }),
  )
  await eventually(async () =>
    assert.ok((await a.daemon.kept('virtual-addresses')).includes(address.ip)),
  )

  for (const name of ['a', 'b']) await mesh.catalog.agent(name).kill()
  await mesh.catalog.server.kill()
  for (const host of hosts) await host.daemon.kill()
  const startedAtMs = performance.now()
  await Promise.all(hosts.map((host) => host.daemon.launch()))

  await t.test(
    'an allowed call to the virtual address works, as soon as the daemons are up',
    async () => {
      // Less than a second on a machine that has nothing else to do; tests share theirs.
      await eventually(() => web.call('db'), { withinMs: 15_000, everyMs: 20 })
      t.diagnostic(`served ${Math.round(performance.now() - startedAtMs)} ms after the start`)
      assert.deepEqual(await mesh.virtualAddress('db', a), address)
    },
  )

  await t.test('a pair that was denied stays denied', async () => {
    await assert.rejects(web.call('secret'))
    assert.ok((await b.daemon.metric('hostmesh_tcp_connections_closed_total', DENIED)) > 0)
  })

  await t.test(
    'the daemon is ready, and says what it only remembers and how old that is',
    async () => {
      await a.daemon.ready()
      const status = await a.daemon.status()
      assert.deepEqual(
        status.state.parts.map(({ part, state, remembered }) => ({ part, state, remembered })),
        [
          { part: 'services', state: 'remembered', remembered: 2 },
          // Nothing on this host takes calls.
          { part: 'policies', state: 'none', remembered: 0 },
          { part: 'certificates', state: 'remembered', remembered: 2 },
        ],
      )
      const age = status.catalog.ageMs ?? 0
      assert.ok(age > 0 && age < patient(120_000), `${age} ms`)
      assert.deepEqual(
        (await partsOf(b)).map(({ part, remembered }) => `${remembered} ${part}`),
        ['2 services', '2 policies', '3 certificates'],
      )
      const { stdout, code } = await a.daemon.cli('status')
      assert.equal(code, 1)
      assert.match(stdout, /2 services are remembered from an earlier run, last confirmed \S+ ago/)
      assert.match(stdout, /HM_CONSUL_UNREACHABLE/)
      assert.equal(await a.daemon.metric('hostmesh_ready'), 1)
      assert.equal(await a.daemon.metric('hostmesh_state_remembered', { part: 'services' }), 2)
      assert.equal(await a.daemon.metric('hostmesh_state_problems'), 0)
      assert.ok((await a.daemon.metric('hostmesh_catalog_age_seconds')) > 0)
    },
  )

  await t.test('the keys are in one file of mode 0600, and in no log and no answer', async () => {
    const path = `${b.daemon.stateFolder}/certificates.json`
    const text = await readFile(path, 'utf8')
    const keys = keysIn(text)
    assert.equal(keys.length, 2)
    assert.equal((await stat(b.daemon.stateFolder)).mode & 0o777, 0o700)
    for (const name of await readdir(b.daemon.stateFolder)) {
      assert.equal((await stat(join(b.daemon.stateFolder, name))).mode & 0o777, 0o600, name)
      if (name === 'certificates.json') continue
      const other = await readFile(join(b.daemon.stateFolder, name), 'utf8')
      assert.doesNotMatch(other, /PRIVATE KEY/)
    }
    const said = [
      b.daemon.log,
      JSON.stringify([await b.daemon.status(), await b.daemon.certs(), await b.daemon.services()]),
    ].join('\n')
    for (const key of ['PRIVATE KEY', ...keys]) assert.ok(!said.includes(key), 'a key was told')
  })

  await t.test('when Consul is back, a change made meanwhile arrives and all is live', async () => {
    await mesh.catalog.server.start()
    await mesh.catalog.server.ready()
    await mesh.deny('web', 'db')
    await mesh.allow('web', 'secret')
    await eventually(() => web.call('db'))
    for (const name of ['a', 'b']) await mesh.catalog.agent(name).start()
    await eventually(() => assert.rejects(web.call('db')), { withinMs: 60_000 })
    await eventually(() => web.call('secret'), { withinMs: 60_000 })
    for (const host of hosts)
      await eventually(
        async () => {
          assert.deepEqual(await statesOf(host), expected[host.name])
          assert.deepEqual((await host.daemon.status()).catalog.problems, [])
        },
        { withinMs: 60_000 },
      )
    await eventually(() => mesh.settled(), { withinMs: 60_000 })
  })
})

const DENIED = { response_flags: 'DENY', destination_service: 'secret' }

/** How much of what a host knows is in its files. */
async function keptBy({ daemon }: Host): Promise<Record<'services' | 'policies' | 'keys', number>> {
  const catalog = await daemon.kept('catalog')
  const { services, policies } = JSON.parse(catalog.slice(catalog.indexOf('\n'))) as {
    readonly services: readonly unknown[]
    readonly policies: readonly unknown[]
  }
  return {
    services: services.length,
    policies: policies.length,
    keys: keysIn(await daemon.kept('certificates')).length,
  }
}

/** The first line of each private key that a certificate file holds. */
function keysIn(text: string): readonly string[] {
  return [...text.matchAll(/BEGIN EC PRIVATE KEY-----\\n([A-Za-z0-9+/=]+)/g)].map(
    ([, line]) => line ?? '',
  )
}
