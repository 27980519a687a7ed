/**
 * F10: the token of a daemon is deleted while it works. Calls go on, the status names the token within 10 s, and
 * a new one in the file is all that it takes.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { documentedPolicy } from '../harness/consul-acl.ts'
import { eventually } from '../harness/eventually.ts'
import { startConsulPair } from './consul-pair.ts'

test('a deleted token costs no call, is named in time, and a new one heals', async () => {
  await using pair = await startConsulPair({ cluster: { acl: 'deny' } })
  const { mesh, web } = pair
  const { acl } = mesh.catalog
  await using calls = pair.calls()
  await calls.more(20)

  await acl.deleteToken(acl.tokenOf('a'))
  await eventually(async () => assert.match(await pair.problems(), /does not know the token/), {
    withinMs: 10_000,
  })
  await calls.more(50)
  const { services } = await mesh.host('a').daemon.services()
  assert.equal(services.find(({ name }) => name === 'db')?.endpoints.length, 1)
  assert.deepEqual(await calls.failures(), [])

  await acl.giveToken('a', await acl.createToken('hostmesh-a', documentedPolicy('web')))
  await eventually(async () => assert.equal(await pair.problems(), ''), { withinMs: 15_000 })
  await mesh.deny('web', 'db')
  await eventually(() => assert.rejects(web.call('db')))
})
