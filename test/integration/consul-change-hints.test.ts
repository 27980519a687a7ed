/**
 * Claims about hints of change: a watch without a place to wait in does not wait for its next poll.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { Follower } from '../../src/controlplane/catalog/consul/blocking-query.ts'
import { startChangeHints } from '../../src/controlplane/catalog/consul/change-hints.ts'
import { createTransport } from '../../src/controlplane/catalog/consul/transport.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually, indexed, startFakeAgent } from './consul-fake-agent.ts'

const SUMMARY = '/v1/internal/ui/services'

/** A follower with one place, which the hints take. */
async function setUp() {
  const agent = await startFakeAgent()
  const transport = createTransport({ address: agent.address, requestTimeout: 2_000 })
  const follower = new Follower(transport, { log: silentLog, maxBlocking: 1 })
  const hints = startChangeHints(follower)
  return {
    agent,
    follower,
    async [Symbol.asyncDispose]() {
      hints[Symbol.dispose]()
      follower[Symbol.dispose]()
      transport[Symbol.dispose]()
      await agent[Symbol.asyncDispose]()
    },
  }
}

describe('hints of change', { concurrency: true }, () => {
  test('a service whose summary differs is asked for at once, the others wait for their poll', async () => {
    await using world = await setUp()
    world.agent.always('/v1/db', () => indexed(7, ['one']))
    world.agent.always('/v1/web', () => indexed(7, ['one']))
    const heard: unknown[] = []
    world.follower.follow('/v1/db', (body) => heard.push(body), { subject: 'db' })
    world.follower.follow('/v1/web', () => undefined, { subject: 'web' })
    world.agent.answer(SUMMARY, indexed(7, [{ Name: 'db', InstanceCount: 1 }, { Name: 'web' }]))
    await eventually('the summary is waited for', () => world.agent.requestsFor(SUMMARY)[1])
    const askedBefore = {
      db: world.agent.requestsFor('/v1/db').length,
      web: world.agent.requestsFor('/v1/web').length,
    }
    world.agent.always('/v1/db', () => indexed(8, ['two']))
    world.agent.answer(SUMMARY, indexed(8, [{ Name: 'db', InstanceCount: 2 }, { Name: 'web' }]))
    await eventually('the change is heard of', () => heard.length === 2)
    assert.equal(world.agent.requestsFor('/v1/db').length, askedBefore.db + 1)
    assert.equal(world.agent.requestsFor('/v1/web').length, askedBefore.web)
  })

  test('a changed proxy is a change of the service that it speaks for', async () => {
    await using world = await setUp()
    world.agent.always('/v1/db', () => indexed(7, ['one']))
    world.follower.follow('/v1/db', () => undefined, { subject: 'db' })
    const proxy = { Name: 'db-proxy', Kind: 'connect-proxy', ProxyFor: ['db'] }
    world.agent.answer(SUMMARY, indexed(7, [{ ...proxy, ChecksCritical: 0 }]))
    await eventually('the summary is waited for', () => world.agent.requestsFor(SUMMARY)[1])
    const before = world.agent.requestsFor('/v1/db').length
    world.agent.answer(SUMMARY, indexed(8, [{ ...proxy, ChecksCritical: 1 }]))
    await eventually('db is asked again', () => world.agent.requestsFor('/v1/db').length > before)
  })

  test('an agent without the summary costs nothing but the hints', async () => {
    await using world = await setUp()
    world.agent.always(SUMMARY, () => ({ status: 404, body: 'no such thing' }))
    world.agent.always('/v1/db', () => indexed(7, ['one']))
    const heard: unknown[] = []
    world.follower.follow('/v1/db', (body) => heard.push(body), { subject: 'db' })
    await eventually('the summary was asked for', () => world.agent.requestsFor(SUMMARY)[0])
    assert.deepEqual(heard, [['one']])
    assert.deepEqual(
      world.follower
        .health()
        .filter(({ path, problem }) => path === '/v1/db' && problem !== undefined),
      [],
    )
  })
})
