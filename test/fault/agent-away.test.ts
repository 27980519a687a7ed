/**
 * F1: the Consul agents of both hosts are away for a while, under load. No call to a live instance fails, the
 * status says since when, and what changes afterwards arrives.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ConsulAgent } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { startConsulPair } from './consul-pair.ts'

/**
 * Longer than a few rounds of everything that asks often, shorter than checks live without a beat: an agent that was away
 * for longer takes them for critical for a moment.
 */
const AWAY_MS = 10_000

test('agents that are away cost no call, and their return brings the changes', async () => {
  await using pair = await startConsulPair()
  const { mesh, web } = pair
  const { daemon } = mesh.host('a')
  await using calls = pair.calls()
  await calls.more(20)
  await beaten(mesh.catalog.agent('b'))

  const atMs = performance.now()
  await Promise.all(['a', 'b'].map((host) => mesh.catalog.agent(host).kill()))
  await sleep(AWAY_MS)
  const { catalog } = await daemon.status()
  const awayMs = performance.now() - atMs
  assert.match(catalog.problems.join('\n'), /Cannot reach Consul/)
  assert.ok(
    Math.abs((catalog.ageMs ?? 0) - awayMs) < 5_000,
    `away for ${awayMs} ms, the status says ${catalog.ageMs} ms`,
  )
  await calls.more(20)

  await Promise.all(['a', 'b'].map((host) => mesh.catalog.agent(host).start()))
  await Promise.all(['a', 'b'].map((host) => mesh.catalog.agent(host).ready()))
  await eventually(async () => assert.equal(await pair.problems(), ''), { withinMs: 40_000 })
  assert.deepEqual(await calls.failures(), [])
  assert.deepEqual([...calls.instances()], ['db-b'])

  await mesh.deny('web', 'db')
  await eventually(() => assert.rejects(web.call('db')))
})

/** Waits until the daemon has renewed its check once, so that the agent remembers it. */
async function beaten(agent: ConsulAgent): Promise<void> {
  await eventually(async () => {
    const checks = (await agent.get('/v1/agent/checks')) as Record<string, { Output: string }>
    assert.notEqual(checks['hostmesh-ttl:db-b']?.Output ?? '', '')
  })
}
