/**
 * Whether somebody listens is read from the kernel: right for both families, wildcards and mapped addresses, and
 * nobody is connected to.
 */
import assert from 'node:assert/strict'
import { createServer } from 'node:net'
import { test } from 'node:test'
import { isListening } from '../../src/lib/listening.ts'

async function listenOn(
  host: string,
  options: { ipv6Only?: boolean } = {},
): Promise<{ port: number; accepted: () => number } & AsyncDisposable> {
  let accepted = 0
  const server = createServer(() => (accepted += 1))
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject)
    server.listen({ host, port: 0, ...options }, resolve)
  })
  const address = server.address()
  assert.ok(address !== null && typeof address === 'object')
  return {
    port: address.port,
    accepted: () => accepted,
    async [Symbol.asyncDispose]() {
      await new Promise((resolve) => server.close(resolve))
    },
  }
}

for (const [host, asked] of [
  ['127.0.0.1', '127.0.0.1'],
  ['0.0.0.0', '127.0.0.1'],
  ['::1', '::1'],
  ['::', '::1'],
  ['::', '127.0.0.1'],
  ['::ffff:127.0.0.1', '127.0.0.1'],
] as const)
  test(`${asked} where somebody listens on ${host}, and after its end`, async () => {
    let port: number
    {
      await using server = await listenOn(host)
      ;({ port } = server)
      assert.equal(await isListening(asked, port), true)
      assert.equal(server.accepted(), 0)
    }
    assert.equal(await isListening(asked, port), false)
  })

test('another address of this host is another listener', async () => {
  await using server = await listenOn('127.0.0.1')
  assert.equal(await isListening('127.0.0.2', server.port), false)
  assert.equal(await isListening('::1', server.port), false)
})

test('of an address that is not of this host nothing is known', async () => {
  assert.equal(await isListening('192.0.2.1', 80), undefined)
})
