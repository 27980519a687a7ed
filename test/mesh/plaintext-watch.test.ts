/**
 * The watch for plaintext and the steady connections, held against what is known: every connection that went in
 * plaintext is counted once, and none that went through a tunnel is.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'

import { type Pair, startPair } from '../harness/pair.ts'
import { watchForPlaintext } from '../harness/plaintext-watch.ts'
import { keepConnecting } from '../harness/steady-calls.ts'
import { canary } from '../harness/wire-capture.ts'

const DB_PORT = 5432

let pair: Pair

before(async () => {
  pair = await startPair({ behavior: 'echo' })
})

after(() => pair[Symbol.asyncDispose]())

test('what is captured is served, and nothing of it is seen on either host', async () => {
  const { mesh, web } = pair
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const { ip, port } = await mesh.virtualAddress('db', a)
  const text = canary()
  await using onA = await watchForPlaintext(a.namespace, text)
  await using onB = await watchForPlaintext(b.namespace, text)
  await using calls = await keepConnecting(web.service, {
    targets: [`${ip}:${port}`],
    canary: text,
  })
  await calls.more(50)
  const { served, calls: all, outcomes } = await calls.stop()
  assert.deepEqual(outcomes, { served: all })
  assert.ok(served >= 50)
  await onA.assertNone()
  await onB.assertNone()
})

test('every connection in plaintext is counted once, on the host that sends and the one that receives', async () => {
  const { mesh } = pair
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const text = canary()
  await using onA = await watchForPlaintext(a.namespace, text)
  await using onB = await watchForPlaintext(b.namespace, text)
  await using calls = await keepConnecting(a.stranger(), {
    targets: [`${b.namespace.ip}:${DB_PORT}`, `[${b.namespace.ip6}]:${DB_PORT}`],
    rate: 200,
    canary: text,
  })
  await calls.more(200)
  const { calls: all, outcomes, longestMs } = await calls.stop()
  assert.deepEqual(outcomes, { served: all })
  assert.ok(longestMs > 0)
  const numbers = calls.calls().map(({ number }) => number)
  for (const leaks of [onA, onB]) {
    assert.equal(await leaks.count(), all)
    const seen = new Set((await leaks.leaks()).map(({ serial }) => serial))
    assert.deepEqual(seen, new Set(numbers.toSorted((x, y) => x - y)))
    await assert.rejects(
      leaks.assertNone(),
      new RegExp(`Plaintext of ${all} connections on the wire`),
    )
  }
  const [first] = await onA.leaks()
  assert.deepEqual([first?.device, first?.direction], ['eth0', 'out'])
})

test('a device that is excepted is not looked at, and another canary is not seen', async () => {
  const { mesh } = pair
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  await using calls = await keepConnecting(a.stranger(), {
    targets: [`${b.namespace.ip}:${DB_PORT}`],
  })
  await using excepted = await watchForPlaintext(a.namespace, calls.canary, { except: ['eth0'] })
  await using other = await watchForPlaintext(a.namespace, canary())
  await calls.more(10)
  await calls.stop()
  await excepted.assertNone()
  await other.assertNone()
})

test('connections that fail are told apart, and do not hold up the others', async () => {
  const { mesh } = pair
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  await using calls = await keepConnecting(a.stranger(), {
    // Nobody listens on one, nobody has the address of the other.
    targets: [`${b.namespace.ip}:${DB_PORT}`, `${b.namespace.ip}:9`, '10.88.0.77:9'],
    patienceMs: 1_000,
  })
  await calls.more(60)
  const { served, refused, timeout, calls: all, outcomes } = await calls.stop()
  assert.equal(served + refused + timeout + (outcomes['EHOSTUNREACH'] ?? 0), all)
  for (const count of [served, refused, all - served - refused])
    assert.ok(Math.abs(count - all / 3) <= 1, JSON.stringify(outcomes))
})
