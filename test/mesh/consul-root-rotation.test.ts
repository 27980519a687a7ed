/**
 * The root of a live Consul CA is replaced under load: new connections go on without one failure, between
 * hostmesh hosts and with Consul's own proxy, until every leaf is of the new root and old tunnels are gone.
 */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { test } from 'node:test'
import { startConnectProxy } from '../harness/connect-proxy.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'

interface RootsAnswer {
  readonly ActiveRootID: string
  readonly Roots: readonly { readonly ID: string; readonly Active: boolean }[]
}

test('replacing the root of the Consul CA costs no connection', async () => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'old'],
    catalog: 'consul',
    daemonless: ['old'],
  })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432, connectPort: 15_444 }).start(echo)
  const ledger = await mesh.host('old').service('ledger', { listens: 7000 }).start(echo)
  for (const [from, to] of [
    ['web', 'db'],
    ['web', 'ledger'],
    ['ledger', 'db'],
  ] as const)
    await mesh.allow(from, to)
  await startConnectProxy(mesh, ledger.service, { db: 9191 })
  await mesh.up()
  const pairs: Readonly<Record<string, () => Promise<unknown>>> = {
    'web -> db': () => web.call('db'),
    'web -> ledger, behind a sidecar': () => web.call('ledger'),
    'ledger -> db, from a sidecar': () => ledger.callPort(9191),
  }
  for (const call of Object.values(pairs)) await eventually(call)

  const failures: string[] = []
  const calls: Record<string, number> = {}
  const over = new AbortController()
  const callers = Promise.all(
    Object.entries(pairs)
      .flatMap((pair) => [pair, pair])
      .map(async ([name, call]) => {
        while (!over.signal.aborted) {
          calls[name] = (calls[name] ?? 0) + 1
          await call().catch((error: unknown) => failures.push(`${name}: ${String(error)}`))
        }
      }),
  )
  const serialOf = async (host: string, service: string): Promise<string | undefined> =>
    (await mesh.host(host).daemon.certs()).leaves.find((leaf) => leaf.service === service)
      ?.serialNumber
  const before = { web: await serialOf('a', 'web'), db: await serialOf('b', 'db') }
  const roots = async (): Promise<RootsAnswer> =>
    (await mesh.catalog.server.get('/v1/connect/ca/roots')) as RootsAnswer
  const oldRoot = (await roots()).ActiveRootID
  const oldTunnels = (await mesh.host('a').daemon.peers()).tunnels.map(({ openedAt }) => openedAt)
  const newest = oldTunnels.toSorted().at(-1) ?? ''
  assert.notEqual(newest, '', 'there is a tunnel to be replaced')
  await mesh.catalog.server.put('/v1/connect/ca/configuration', {
    Provider: 'consul',
    Config: {
      PrivateKey: generateKeyPairSync('ec', { namedCurve: 'P-256' })
        .privateKey.export({ type: 'sec1', format: 'pem' })
        .toString(),
      LeafCertTTL: '72h',
    },
  })
  try {
    assert.notEqual((await roots()).ActiveRootID, oldRoot)
    await eventually(
      async () => {
        assert.notEqual(await serialOf('a', 'web'), before.web)
        assert.notEqual(await serialOf('b', 'db'), before.db)
      },
      { withinMs: 120_000, everyMs: 250 },
    )
    await eventually(
      async () => {
        for (const host of ['a', 'b'])
          for (const { openedAt } of (await mesh.host(host).daemon.peers()).tunnels)
            assert.ok(openedAt > newest, `a tunnel of the old leaves is open on ${host}`)
      },
      { withinMs: 30_000, everyMs: 100 },
    )
  } finally {
    over.abort()
    await callers
  }
  const told = `of ${JSON.stringify(calls)}`
  assert.deepEqual(
    failures.filter((failure) => !isGoClosing(failure)),
    [],
    told,
  )
  assert.ok(failures.length < (calls['web -> ledger, behind a sidecar'] ?? 0) / 50, told)
  for (const [name, count] of Object.entries(calls)) assert.ok(count > 20, `${name}: ${count}`)
  assert.equal((await mesh.host('a').daemon.certs()).roots.length, 2)
})

/**
 * Consul's own proxy closes both sides when the first one ends, and Go leaves out close_notify while a write is under
 * way: one or two in a thousand. Nobody can tell that from a cut, so the application gets a reset, after the answer here.
 */
function isGoClosing(failure: string): boolean {
  return /^web -> ledger, behind a sidecar: .*Not a clean end after the answer: \{"bytes":0,.*"ending":"ECONNRESET"/.test(
    failure,
  )
}
