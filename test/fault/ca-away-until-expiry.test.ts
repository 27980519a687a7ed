/**
 * A CA that issues nothing any more: traffic goes on until the certificates end, nothing is taken after that,
 * `status` says why, and all is well within 10 s of new certificates.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually, within } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { echo } from '../harness/service.ts'
import { issueShortLeaf } from './short-leaves.ts'

test('certificates that end because nobody renews them', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const web = await mesh.host('a').service('web').start()
  await mesh.host('b').service('db', { listens: 5432 }).start(echo)
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const delivered = (): Promise<number> =>
    mesh.host('b').daemon.metric('hostmesh_tcp_connections_opened_total', {
      reporter: 'destination',
    })
  const issue = async (lifetimeMs: number): Promise<number> => {
    await issueShortLeaf(mesh.catalog, { host: 'a', service: 'web', lifetimeMs })
    return issueShortLeaf(mesh.catalog, { host: 'b', service: 'db', lifetimeMs })
  }
  const endsAtMs = await issue(8_000)
  await eventually(async () => {
    for (const host of ['a', 'b']) {
      const { leaves } = await mesh.host(host).daemon.certs()
      assert.ok(leaves.every(({ notAfter }) => Date.parse(notAfter) <= endsAtMs))
    }
  })

  await t.test('connections work until then, and a live one is cut at the end', async () => {
    await web.call('db')
    const live = await web.dial('db')
    await live.write('hello\n')
    await live.readLine()
    const { ending } = await within(15_000, 'the end of the live connection', live.readRest())
    assert.equal(ending, 'ECONNRESET')
    assert.ok(Date.now() >= endsAtMs - 1_000, 'not before its certificates ended')
    assert.ok(Date.now() <= endsAtMs + 5_000, 'at most 5 s after')
    // Who notices first cuts it and says why; the other host may only see it go.
    await eventually(async () => {
      const flagged = await Promise.all(
        ['a', 'b'].map((host) =>
          mesh
            .host(host)
            .daemon.metric('hostmesh_tcp_connections_closed_total', { response_flags: 'TLS' }),
        ),
      )
      assert.ok(flagged.some((count) => count > 0))
    })
  })

  await t.test('nothing is taken after it, and status says why', async () => {
    const before = await delivered()
    for (let i = 0; i < 2; i += 1) {
      const socket = await web.dial('db')
      await socket.write('>').catch(() => undefined)
      assert.equal((await socket.readRest()).ending, 'ECONNRESET')
    }
    assert.equal(await delivered(), before)
    const { certificates } = await mesh.host('a').daemon.status()
    assert.match(certificates.problems.join(), /web.*expired at/)
  })

  await t.test('it recovers within 10 s of new certificates', async () => {
    await issue(3_600_000)
    await within(
      10_000,
      'a connection',
      eventually(() => web.call('db')),
    )
    assert.deepEqual((await mesh.host('a').daemon.status()).certificates.problems, [])
  })
})
