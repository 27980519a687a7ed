/**
 * F6: behind one address are two agents with different catalogs, and every few seconds the other one answers. No call
 * ever ends at another service, and no more calls fail than the dead instances explain.
 *
 * Certificates come from one of them: a second CA would only mean that no handshake succeeds at all.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ConsulAgent, LONE_SERVER } from '../harness/consul.ts'
import { startConsulPair } from './consul-pair.ts'

const SWITCH_MS = 3_000
const ROUNDS = 6

test('two catalogs behind one address never mix up services', async () => {
  await using pair = await startConsulPair({ hosts: ['a', 'b', 'other'], daemonless: ['other'] })
  const { mesh, agent } = pair
  const cache = await mesh.host('b').daemon.services()
  assert.ok(cache.services.some(({ name }) => name === 'db'))

  await using world = new ConsulAgent(join(mesh.folder, 'world'), mesh.host('other').namespace)
  await mesh.catalog.agent('other').kill()
  await world.start({
    ...LONE_SERVER,
    node_name: 'world',
  })
  await world.ready()
  // The same service, where nobody listens, and where host a itself listens for others.
  for (const [node, ip] of [
    ['ghost', '10.88.0.77'],
    ['b', mesh.host('b').namespace.ip],
    ['mirror', mesh.host('a').namespace.ip],
  ])
    await world.put('/v1/catalog/register', {
      Node: node,
      Address: ip,
      Service: {
        Kind: 'connect-proxy',
        ID: `db-${node}-proxy`,
        Service: 'db-proxy',
        Port: 15_443,
        Proxy: { DestinationServiceName: 'db', DestinationServiceID: `db-${node}` },
      },
    })
  await world.put(
    '/v1/connect/intentions',
    { SourceName: 'web', DestinationName: 'db', SourceType: 'consul', Action: 'allow' },
    'POST',
  )

  await using calls = pair.calls()
  await calls.more(20)
  for (let round = 0; round < ROUNDS; round += 1) {
    const target = round % 2 === 0 ? world.socketPath : undefined
    agent.tamper(
      { target: ({ path }) => (path.startsWith('/v1/agent/') ? undefined : target) },
      { cutWaiting: true },
    )
    await sleep(SWITCH_MS)
  }
  agent.tamper({}, { cutWaiting: true })
  const failed = await calls.failures()
  assert.deepEqual([...calls.instances()], ['db-b'], 'only the real db answers')
  // Two of the three instances of the other world are dead.
  const share = failed.length / (failed.length + calls.answered())
  assert.ok(share <= 2 / 3, `${failed.length} failed, ${calls.answered()} answered`)
  await using after = pair.calls()
  await after.more(20)
  assert.deepEqual(await after.failures(), [])
})
