/**
 * The harness measured against itself, without any daemon: what it reports must be what happened, or
 * every claim made with it is worth nothing.
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import { Network } from '../harness/network.ts'
import { canary, WireCapture } from '../harness/wire-capture.ts'
import { Workload } from '../harness/workload.ts'

describe('without a mesh', () => {
  let network: Network
  let web: Workload
  let db: Workload

  before(async () => {
    network = await Network.create(['a', 'b'])
    web = await Workload.start({
      namespace: network.host('a'),
      uid: 47_001,
      service: 'web',
      instance: 'web',
    })
    db = await Workload.start({
      namespace: network.host('b'),
      uid: 47_002,
      service: 'db',
      instance: 'db-1',
    })
    await db.listen('::', 5432, 'echo')
    await db.listen('::', 5433, 'manual')
  })

  after(async () => {
    await web[Symbol.asyncDispose]()
    await db[Symbol.asyncDispose]()
    await network[Symbol.asyncDispose]()
  })

  test('an echo says who it is and returns the nonce, over IPv4 and IPv6', async () => {
    const { ip, ip6 } = network.host('b')
    for (const address of [ip, ip6]) {
      const socket = await web.dial(address, 5432)
      await socket.write('n-1\n')
      const answer = JSON.parse(await socket.readLine()) as Record<string, string>
      assert.equal(answer['service'], 'db')
      assert.equal(answer['instance'], 'db-1')
      assert.equal(answer['nonce'], 'n-1')
      await socket.end()
      assert.equal((await socket.readRest()).ending, 'end')
    }
  })

  test('a service process owns its sockets as its own user', async () => {
    const listening = await network.host('b').run('ss', '-H', '-t', '-l', '-n', '-e')
    assert.match(listening, /:5432 .*uid:47002/)
  })

  test('text that crosses the wire in plaintext is seen there', async () => {
    await using wire = await WireCapture.start(network.wire)
    const text = canary()
    const socket = await web.dial(network.host('b').ip, 5432)
    await socket.write(`${text}\n`)
    await wire.sees(text)
    assert.equal(await wire.has(canary()), false)
    await socket.end()
    await socket.readRest()
  })

  test('an orderly end and a reset are told apart', async () => {
    const ended = await web.dial(network.host('b').ip, 5433)
    await (await db.accept()).end()
    assert.equal((await ended.readRest()).ending, 'end')

    const aborted = await web.dial(network.host('b').ip, 5433)
    await (await db.accept()).reset()
    assert.equal((await aborted.readRest()).ending, 'ECONNRESET')
  })

  test('a refused connection is reported as refused', async () => {
    await assert.rejects(web.dial(network.host('b').ip, 9), { code: 'ECONNREFUSED' })
  })

  test('a reader that does not read stalls its writer', async () => {
    const writer = await web.dial(network.host('b').ip, 5433)
    const reader = await db.accept()
    const stalled = await writer.writePattern(64 * 1024 * 1024, { stallMs: 300 })
    assert.ok(stalled.stalled)
    assert.ok(stalled.bytes < 32 * 1024 * 1024, `${stalled.bytes} bytes were taken`)
    await writer.reset()
    assert.equal((await reader.readRest()).ending, 'ECONNRESET')
  })

  test('both ends agree on what was sent', async () => {
    const writer = await web.dial(network.host('b').ip, 5433)
    const reader = await db.accept()
    const [sent, received] = await Promise.all([
      writer.writePattern(3_000_001, { chunkBytes: 7_001 }).then(async (result) => {
        await writer.end()
        return result
      }),
      reader.readRest(),
    ])
    assert.equal(received.bytes, 3_000_001)
    assert.equal(received.sha256, sent.sha256)
    assert.equal(received.ending, 'end')
    await reader.end()
  })
})
