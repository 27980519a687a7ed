/**
 * Hosts of a real Consul with ACLs report to an aggregator that is registered there, with exactly the policy that
 * docs/consul.md prints; without its line for reports a host serves as before and says what is missing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AGGREGATOR, Aggregator } from '../harness/aggregator.ts'
import { documentedPolicy, documentedReporterLine } from '../harness/consul-acl.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

test('with Consul, its CA and ACLs that deny by default', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b'],
    catalog: 'consul',
    cluster: { acl: 'deny' },
    config: { reports: { to: [AGGREGATOR] } },
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web', { listens: 8080 }).start()
  await b.service('db', { listens: 5432 }).start()
  const aggregator = new Aggregator(mesh, b)
  await aggregator.join()
  await aggregator.start()
  await mesh.allow('web', 'db')
  const { acl } = mesh.catalog
  await acl.giveToken('a', await acl.createToken('without-reports', documentedPolicy('web')))
  await mesh.up()

  const reported = async (): Promise<readonly string[]> =>
    (await aggregator.ask('hosts')).hosts.map(({ name, state }) => `${name} ${state}`).toSorted()

  await t.test(
    'without the line for reports a host is ready, carries calls, and the status names that line',
    async () => {
      await eventually(() => web.call('db'))
      await eventually(
        async () => {
          const { ready, problems } = await a.daemon.status()
          assert.equal(ready, true)
          assert.equal(problems.length, 1, JSON.stringify(problems))
          const [{ message, hint, blocks } = { message: '', hint: '', blocks: true }] = problems
          assert.ok(`${message} ${hint}`.includes(documentedReporterLine().replace(/\s+/g, ' ')))
          assert.equal(blocks, false)
        },
        { withinMs: 30_000 },
      )
      await eventually(async () => assert.deepEqual(await reported(), ['b ready']), {
        withinMs: 30_000,
      })
    },
  )

  await t.test('with the policy of the document both report, and nothing is wrong', async () => {
    await acl.setPolicy('without-reports', [...documentedPolicy('web'), documentedReporterLine()])
    await eventually(async () => assert.deepEqual(await reported(), ['a ready', 'b ready']), {
      withinMs: 60_000,
    })
    for (const { daemon } of [a, b])
      await eventually(async () => assert.deepEqual((await daemon.status()).problems, []), {
        withinMs: 30_000,
      })
  })
})
