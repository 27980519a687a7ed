/**
 * Claims about following a path, over real sockets against a scripted agent.
 */
import assert from 'node:assert/strict'
import { mkdtempDisposableSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { gzipSync } from 'node:zlib'
import { Follower } from '../../src/controlplane/catalog/consul/blocking-query.ts'
import { createTransport } from '../../src/controlplane/catalog/consul/transport.ts'
import type { Clock } from '../../src/lib/clock.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import { hurried, TestClock } from '../harness/test-clock.ts'
import { eventually, type FakeAnswer, indexed, startFakeAgent } from './consul-fake-agent.ts'

/** Where only waits are long: how much faster they pass. Whatever is held against time is held against this clock. */
const HURRY = 10

/** What requests and a slow machine may take beside the waits. */
const REAL_MS = 3_000

async function setUp(
  options: { maxBlocking?: number; tokenFile?: string; clock?: Clock; log?: Log } = {},
) {
  const { tokenFile, ...followerOptions } = options
  const agent = await startFakeAgent()
  const transport = createTransport({ address: agent.address, requestTimeout: 2_000, tokenFile })
  const follower = new Follower(transport, {
    log: silentLog,
    ...followerOptions,
  })
  return {
    agent,
    transport,
    follower,
    async [Symbol.asyncDispose]() {
      follower[Symbol.dispose]()
      transport[Symbol.dispose]()
      await agent[Symbol.asyncDispose]()
    },
  }
}

describe('following a path', { concurrency: true }, () => {
  test('the log hears of one outage once, however its words change, and of its end', async () => {
    const lines: string[] = []
    const clock = hurried(HURRY)
    const log = { ...silentLog, warn: say, info: say }
    function say(message: string): void {
      lines.push(message)
    }
    await using world = await setUp({ clock, log })
    let port = 40_000
    let isAway = true
    world.agent.always('/v1/a', () =>
      isAway
        ? { status: 500, body: `rpc error: dial tcp 10.0.0.9:${port++}: connection refused` }
        : indexed(7, ['x']),
    )
    const bodies: unknown[] = []
    world.follower.follow('/v1/a', (body) => bodies.push(body))
    await eventually('attempts', () => world.agent.requestsFor('/v1/a').length >= 4)
    isAway = false
    await eventually('answer', () => bodies[0], 15_000)
    assert.deepEqual(lines, ['Watch failed; its last good answer stays', 'Watch recovered'])
  })

  test('an answer is delivered once, and the next request waits at its index, stale reads allowed', async () => {
    await using world = await setUp()
    const bodies: unknown[] = []
    world.agent.answer('/v1/a', indexed(7, ['x']))
    world.follower.follow('/v1/a?dc=dc1', (body) => bodies.push(body))
    const second = await eventually('second request', () => world.agent.requestsFor('/v1/a')[1])
    assert.deepEqual(bodies, [['x']])
    assert.equal(second.query.get('index'), '7')
    assert.match(second.query.get('wait') ?? '', /^(4[5-9]|5[0-5])s$/)
    assert.equal(second.query.get('dc'), 'dc1')
    assert.ok(second.query.has('stale'))
    world.agent.answer('/v1/a', indexed(8, ['y']))
    await eventually('change', () => bodies.length === 2)
    assert.deepEqual(bodies[1], ['y'])
  })

  test('an answer whose content is the same is not delivered again', async () => {
    await using world = await setUp()
    const bodies: unknown[] = []
    world.agent.answer(
      '/v1/a',
      indexed(7, [{ Tags: ['a', 'b'], ModifyIndex: 7 }]),
      indexed(8, [{ ModifyIndex: 8, Tags: ['b', 'a'] }]),
    )
    world.follower.follow('/v1/a', (body) => bodies.push(body))
    await eventually('third request', () => world.agent.requestsFor('/v1/a')[2])
    assert.equal(bodies.length, 1)
  })

  test('"not found" with an index is an answer, and its creation is waited for', async () => {
    await using world = await setUp()
    const bodies: unknown[] = []
    world.agent.answer('/v1/a', { status: 404, headers: { 'x-consul-index': '5' }, body: 'x' })
    const watch = world.follower.follow('/v1/a', (body) => bodies.push(body))
    const second = await eventually('second request', () => world.agent.requestsFor('/v1/a')[1])
    assert.equal(second.query.get('index'), '5')
    assert.deepEqual(bodies, [undefined])
    assert.equal(watch.health().problem, undefined)
  })

  test('no bad answer is delivered, each is named, and the next read starts over and recovers', async () => {
    await using world = await setUp()
    const deep = '['.repeat(10_000)
    const bad: Record<string, FakeAnswer> = {
      html: { body: '<html>' },
      empty: indexed(8, ''),
      truncated: indexed(8, '[{"a":1}'),
      bom: indexed(8, '\uFEFF[]'),
      nan: indexed(8, '[NaN]'),
      deep: indexed(8, deep),
      huge: indexed(8, `"${'x'.repeat(17 * 1024 * 1024)}"`),
      bomb: {
        headers: { 'content-encoding': 'gzip', 'x-consul-index': '8' },
        body: gzipSync(Buffer.alloc(100_000_000, 32)),
      },
      redirect: { status: 301, headers: { location: 'http://127.0.0.1:1/' } },
      missing: { status: 404, body: 'no handler' },
      error: { status: 500, headers: { 'x-consul-index': '1' }, body: 'No cluster leader' },
      text: { body: 'rpc error' },
      old: {
        headers: { 'x-consul-index': '8', 'x-consul-lastcontact': '1000000000000' },
        body: ['old'],
      },
      cut: (response) => {
        response.writeHead(200, { 'x-consul-index': '8', 'content-length': '50' })
        response.write('[')
        setTimeout(() => response.socket?.destroy(), 10)
      },
      reset: (response) => void response.socket?.destroy(),
      refusedByWatcher: indexed(8, 'null'),
    }
    await Promise.all(
      Object.entries(bad).map(async ([name, answer]) => {
        const path = `/v1/${name}`
        const bodies: unknown[] = []
        world.agent.answer(path, indexed(7, [1]), answer)
        // The connection of a reset request may be a reused one, and is then tried again at once.
        if (name === 'reset') world.agent.answer(path, answer, answer)
        const watch = world.follower.follow(path, (body) => {
          if (body === null) throw new MeshError('HM_TEST_REFUSED', 'Not a list')
          bodies.push(body)
        })
        await eventually(`${name}: problem`, () => watch.health().problem)
        assert.deepEqual(bodies, [[1]], name)
        const after = await eventually(
          `${name}: read after the failure`,
          () =>
            world.agent.requestsFor(path).at(-1)?.query.get('index') === '0' &&
            world.agent.requestsFor(path).length > 2,
        )
        assert.ok(after)
        world.agent.answer(path, indexed(3, [2]))
        await eventually(`${name}: recovery`, () => bodies.length === 2)
        assert.deepEqual(bodies, [[1], [2]], name)
        await eventually(`${name}: problem is gone`, () => watch.health().problem === undefined)
      }),
    )
  })

  test('a 403 keeps what is known and is not asked again for seconds', async () => {
    const clock = new TestClock()
    await using world = await setUp({ clock })
    const bodies: unknown[] = []
    world.agent.answer('/v1/a', indexed(7, [1]), { status: 403, body: 'ACL not found' })
    const watch = world.follower.follow('/v1/a', (body) => bodies.push(body))
    const problem = await eventually('problem', () => watch.health().problem)
    assert.match(problem, /does not allow.*ACL not found/)
    await eventually('it waits', () => clock.sleeping === 1)
    clock.pass(2_000)
    // Longer than a request would take.
    await new Promise((resolve) => setTimeout(resolve, 100))
    assert.equal(world.agent.requestsFor('/v1/a').length, 2)
    assert.deepEqual(bodies, [[1]])
  })

  test('a refused watch is asked again at once when somebody knows that the reason is gone', async () => {
    await using world = await setUp()
    const bodies: unknown[] = []
    world.agent.answer('/v1/a', { status: 403, body: 'Permission denied' }, indexed(7, [1]))
    world.follower.follow('/v1/a', (body) => bodies.push(body))
    await eventually('refusal', () => world.follower.health()[0]?.problem)
    world.follower.retry()
    await eventually('answer', () => bodies.length === 1, 2_000)
  })

  test('a request that waits is made anew when the token file has another token', async () => {
    using folder = mkdtempDisposableSync(join(tmpdir(), 'hostmesh-token-'))
    const tokenFile = join(folder.path, 'token')
    writeFileSync(tokenFile, 'old')
    await using world = await setUp({ tokenFile })
    world.agent.answer('/v1/a', indexed(7, [1]))
    world.follower.follow('/v1/a', () => undefined)
    await eventually('wait', () => world.agent.requestsFor('/v1/a').length === 2)
    writeFileSync(tokenFile, 'another')
    world.agent.always('/v1/b', () => ({ body: [] }))
    await eventually('news of the token', () => {
      // Whoever makes a call has the file looked at.
      world.transport.call('GET', '/v1/b').catch(() => undefined)
      return world.agent.requestsFor('/v1/a').length === 3
    })
    const [, waited, anew] = world.agent.requestsFor('/v1/a')
    assert.equal(waited?.headers['x-consul-token'], 'old')
    assert.equal(anew?.headers['x-consul-token'], 'another')
    assert.equal(anew?.query.get('index'), '0')
  })

  test('a list that no use could be made of is refused before it is looked at', async () => {
    await using world = await setUp()
    const bodies: unknown[] = []
    world.agent.answer('/v1/a', indexed(7, [1]), indexed(8, Array(20_001).fill(0)))
    world.follower.follow('/v1/a', (body) => bodies.push(body))
    const problem = await eventually('refusal', () => world.follower.health()[0]?.problem)
    assert.match(problem, /lists 20001 entries/)
    assert.deepEqual(bodies, [[1]])
  })

  test('an update is seen within five seconds of an index that fell, is 0, missing or nonsense', async () => {
    await using world = await setUp({ clock: hurried(HURRY) })
    await Promise.all(
      ['5', '0', 'abc', '-7', '99999999999999999999', undefined].map(async (index, position) => {
        const path = `/v1/${position}`
        let last: unknown
        world.agent.answer(
          path,
          indexed(100, ['before']),
          index === undefined ? { body: ['odd'] } : indexed(index, ['odd']),
        )
        world.follower.follow(path, (body) => {
          last = body
        })
        await eventually(`${index}: odd answer`, () => JSON.stringify(last) === '["odd"]')
        world.agent.answer(path, indexed(6, ['after']))
        await eventually(
          `${index}: update`,
          () => JSON.stringify(last) === '["after"]',
          5_500 / HURRY + REAL_MS,
        )
      }),
    )
  })

  test('a server that answers at once, for ever, gets no more than two requests a second', async () => {
    const clock = hurried(HURRY)
    await using world = await setUp({ clock })
    let index = 0
    world.agent.always('/v1/changing', () => indexed((index += 1), [index]))
    world.agent.always('/v1/same', () => indexed(7, []))
    world.follower.follow('/v1/changing', () => undefined)
    world.follower.follow('/v1/same', () => undefined)
    const startedAtMs = clock.monotonicMs()
    await clock.sleep(20_000, new AbortController().signal)
    const seconds = (clock.monotonicMs() - startedAtMs) / 1_000
    for (const path of ['/v1/changing', '/v1/same']) {
      const sent = world.agent.requestsFor(path).length
      assert.ok(sent > 4, `${path}: only ${sent} requests in ${seconds} s`)
      assert.ok(sent <= 4 + 2 * seconds, `${path}: ${sent} requests in ${seconds} s`)
    }
  })

  test('watches without a connection of their own still get their answers, by polling', async () => {
    await using world = await setUp({ maxBlocking: 1, clock: hurried(HURRY) })
    const seen: string[] = []
    world.agent.answer('/v1/a', indexed(7, ['a']))
    world.follower.follow('/v1/a', () => seen.push('a'))
    await eventually('a waits', () => world.agent.requestsFor('/v1/a').length === 2)
    world.agent.answer('/v1/b', indexed(7, ['b']))
    world.follower.follow('/v1/b', () => seen.push('b'))
    await eventually('b', () => seen.includes('b'))
    assert.equal(world.agent.requestsFor('/v1/b')[0]?.query.has('wait'), false)
    world.agent.answer('/v1/b', indexed(8, ['b2']))
    await eventually('b again', () => seen.length === 3, 12_000)
  })

  test('a closed watch is never called again and gives its connection back', async () => {
    await using world = await setUp()
    const bodies: unknown[] = []
    world.agent.answer('/v1/a', indexed(7, [1]))
    const watch = world.follower.follow('/v1/a', (body) => bodies.push(body))
    await eventually('second request', () => world.agent.requestsFor('/v1/a')[1])
    watch[Symbol.dispose]()
    world.agent.answer('/v1/a', indexed(8, [2]))
    await new Promise((resolve) => setTimeout(resolve, 100))
    assert.deepEqual(bodies, [[1]])
    assert.deepEqual(world.follower.health(), [])
  })

  test('when the agent is back for one watch, no other sits out its back-off', async () => {
    const clock = new TestClock()
    await using world = await setUp({ clock })
    const paths = Array.from({ length: 20 }, (_, i) => `/v1/${i}`)
    let isUp = true
    const seen = new Map<string, number>()
    for (const path of paths) {
      world.agent.answer(path, indexed(7, [1]))
      world.agent.always(path, () =>
        isUp ? indexed(8, [2]) : (response) => void response.socket?.destroy(),
      )
      world.follower.follow(path, () => seen.set(path, (seen.get(path) ?? 0) + 1))
    }
    await eventually('first answers', () => seen.size === paths.length)
    isUp = false
    const allSleep = (): Promise<true> =>
      eventually('all wait', () => clock.sleeping === paths.length)
    // Long enough for the back-off of some to have grown to several seconds.
    for (let passedMs = 0; passedMs < 20_000; passedMs += 500) {
      await allSleep()
      clock.pass(500)
    }
    await allSleep()
    assert.ok(world.follower.health().every((watch) => watch.unreachable))
    isUp = true
    const recovered = (): number =>
      world.follower.health().filter((watch) => !watch.unreachable).length
    while (recovered() === 0) {
      clock.pass(10)
      await new Promise((resolve) => setTimeout(resolve, 5))
    }
    // They spread over half a second, so as not to come all at once.
    clock.pass(500)
    await eventually('all recover', () => recovered() === paths.length)
  })
})
