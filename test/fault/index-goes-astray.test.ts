/**
 * F3: an agent that never lets a long poll wait, and whose index falls, is zero, missing or no number. The daemon
 * asks it no more than twice a second for each thing it follows, and hears of a change all the same.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { eventually } from '../harness/eventually.ts'
import { startConsulPair } from './consul-pair.ts'

const WATCHED_MS = 10_000

test('an index that goes astray causes neither a storm of requests nor deafness', async () => {
  await using pair = await startConsulPair()
  const { mesh, agent } = pair
  const indexes = ['100', '5', '0', undefined, 'abc', '18446744073709551616', '-3', '1e9', '7, 8']
  let asked = 0
  agent.tamper(
    {
      query(request) {
        const query = new URLSearchParams(request.query)
        query.delete('index')
        query.delete('wait')
        return query
      },
      headers(_request, real) {
        asked += 1
        const { 'x-consul-index': _real, ...headers } = real
        const index = indexes[asked % indexes.length]
        return index === undefined ? headers : { ...headers, 'x-consul-index': index }
      },
    },
    { cutWaiting: true },
  )
  await using calls = pair.calls()
  // What was saved up is used first.
  await sleep(5_000)
  const from = agent.requests.length
  await sleep(WATCHED_MS)
  const followed = Map.groupBy(
    agent.requests.slice(from).filter(({ query }) => query.has('index')),
    ({ path }) => path,
  )
  assert.ok(followed.size >= 4, `only ${[...followed.keys()].join()} followed`)
  for (const [path, requests] of followed)
    assert.ok(
      requests.length <= (2 * WATCHED_MS) / 1_000,
      `${path}: ${requests.length} requests in ${WATCHED_MS} ms`,
    )

  assert.deepEqual(await calls.failures(), [])
  await mesh.catalog.agent('b').put('/v1/agent/service/maintenance/db-b?enable=true', undefined)
  await eventually(
    async () => {
      const { services } = await mesh.host('a').daemon.services()
      const db = services.find(({ name }) => name === 'db')
      assert.equal(db?.endpoints[0]?.health, 'critical')
    },
    { withinMs: 6_000 },
  )
  await mesh.catalog.agent('b').put('/v1/agent/service/maintenance/db-b?enable=false', undefined)
})
