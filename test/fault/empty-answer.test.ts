/**
 * F5: Consul says for a moment that a service has no instances. Nothing happens; but when its last instance is
 * really gone, that is obeyed.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { startConsulPair } from './consul-pair.ts'

test('an empty answer that comes once costs no call, a real removal is obeyed', async () => {
  await using pair = await startConsulPair()
  const { mesh, agent } = pair
  const known = async (): Promise<number> =>
    (await mesh.host('a').daemon.services()).services.find(({ name }) => name === 'db')?.endpoints
      .length ?? 0
  await using calls = pair.calls()
  await calls.more(20)

  let emptied = 0
  agent.tamper(
    {
      answer({ path }) {
        if (path !== '/v1/health/connect/db' || emptied > 0) return undefined
        emptied += 1
        return { body: '[]', headers: { 'x-consul-index': '99999' } }
      },
    },
    { cutWaiting: true },
  )
  await eventually(() => assert.equal(emptied, 1))
  await calls.more(100)
  assert.equal(await known(), 1)
  assert.deepEqual(await calls.failures(), [])

  agent.tamper({})
  // Its daemon first: it would register the proxy again.
  await mesh.host('b').daemon.stop()
  await pair.db.leave()
  await eventually(async () => assert.equal(await known(), 0), { withinMs: 15_000 })
})
