/**
 * F9: answers that are huge, bottomless, bombs or cut off. What is known stays, calls go on, the daemon answers its
 * operator meanwhile, and its memory does not follow the size of the answers.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { gzipSync } from 'node:zlib'
import type { Tampering } from '../harness/agent-between.ts'
import { eventually, within } from '../harness/eventually.ts'
import { startConsulPair } from './consul-pair.ts'

const MIB = 1024 * 1024

const hostile: Readonly<Record<string, Tampering>> = {
  'seventeen megabytes of text': { body: `"${'x'.repeat(17 * MIB)}"` },
  'a million levels': { body: '['.repeat(1_000_000) },
  'a bomb of half a gigabyte': {
    body: gzipSync(Buffer.alloc(512 * MIB, 32)),
    headers: { 'content-encoding': 'gzip' },
  },
  'five million empty lists': { body: `[${Array(5_000_000).fill('[]').join(',')}]` },
  'a hundred thousand instances': { body: `[${Array(100_000).fill('{"Node":{}}').join(',')}]` },
  'an answer that is cut off': { body: '[{"Node":{"Node":"b"' },
  'keys that are not what they seem': { body: '[{"__proto__":{"Service":1},"Node":null}]' },
}

test('hostile answers change nothing, and cost neither calls nor memory', async (t) => {
  await using pair = await startConsulPair()
  const { mesh, agent } = pair
  const { daemon } = mesh.host('a')
  await using calls = pair.calls()
  // What an ordinary load costs is not what is measured.
  await calls.more(2_000)
  const before = daemon.residentMiB

  for (const [name, tampering] of Object.entries(hostile))
    await t.test(name, async () => {
      let served = 0
      agent.tamper(
        {
          answer({ path }) {
            if (!path.startsWith('/v1/health/connect/')) return undefined
            served += 1
            return tampering
          },
        },
        { cutWaiting: true },
      )
      await eventually(() => assert.ok(served >= 2), { withinMs: 15_000 })
      await within(5_000, 'the status during hostile answers', daemon.status())
      await calls.more(20)
      const { services } = await daemon.services()
      const db = services.find((service) => service.name === 'db')
      assert.deepEqual(
        db?.endpoints.map(({ id }) => id),
        ['db-b'],
      )
      assert.match(await pair.problems(), /health\/connect\/db/)
      agent.tamper({}, { cutWaiting: true })
      await eventually(async () => assert.equal(await pair.problems(), ''), { withinMs: 40_000 })
    })

  const grown = daemon.residentMiB - before
  assert.ok(grown < 128, `grew by ${grown.toFixed(0)} MiB`)
  agent.tamper({}, { cutWaiting: true })
  await eventually(async () => assert.equal(await pair.problems(), ''), { withinMs: 40_000 })
  assert.deepEqual(await calls.failures(), [])
})
