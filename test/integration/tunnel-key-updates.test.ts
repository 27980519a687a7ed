/**
 * TLS messages that carry nothing are work that no frame shows: key updates without end are a flood, some are not.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { carriedBytes } from '../../src/lib/node-internals.ts'
import { eventually, within } from '../harness/eventually.ts'
import { sendKeyUpdates } from '../harness/key-updates.ts'
import { makeLeaf } from '../unit/identity-fixtures.ts'
import {
  authority,
  DATACENTER,
  dialAs,
  openTunnelPort,
  type SessionEnd,
  startSession,
  TRUST_DOMAIN,
} from './tunnel-fixtures.ts'

/** Of one key update: header, message, content type and tag. */
const RECORD_BYTES = 27

async function updated(
  undo: AsyncDisposableStack,
  count: number,
): Promise<{ readonly end: SessionEnd; readonly hasCome: () => boolean }> {
  const port = undo.use(await openTunnelPort(['db']))
  const leaf = makeLeaf(authority)
  const raw = await sendKeyUpdates(
    port.port,
    {
      servername: `db.default.${DATACENTER}.internal.${TRUST_DOMAIN}`,
      cert: leaf.certificatePem,
      key: leaf.privateKeyPem,
      ALPNProtocols: ['hostmesh/1'],
    },
    count,
  )
  undo.defer(() => {
    raw.destroy()
  })
  const { socket } = await port.next()
  return {
    end: startSession(socket, 'acceptor'),
    hasCome: () => (carriedBytes(socket) ?? 0) >= count * RECORD_BYTES,
  }
}

describe('key updates', () => {
  test('without end close the session as a flood', async () => {
    await using undo = new AsyncDisposableStack()
    const { end, hasCome } = await updated(undo, 25_000)
    await eventually(() => assert.ok(hasCome(), 'they have been read'))
    end.session.tick(performance.now())
    const reason = await within(5_000, 'the end of the session', end.closed)
    assert.equal(reason.code, 'HM_TUNNEL_FLOOD')
    assert.match(reason.message, /TLS records that carry nothing/)
  })

  test('that are some do not', async () => {
    await using undo = new AsyncDisposableStack()
    const { end, hasCome } = await updated(undo, 5_000)
    await eventually(() => assert.ok(hasCome(), 'they have been read'))
    end.session.tick(performance.now())
    assert.equal(end.session.isRetired, false)
  })
})

test('what honest tunnels bring counts for nothing, on either side: small records, and large ones', async () => {
  await using undo = new AsyncDisposableStack()
  const port = undo.use(await openTunnelPort(['db']))
  const dialed = await dialAs(port.port)
  undo.defer(() => {
    dialed.socket.destroy()
  })
  const near = startSession(dialed.socket, 'opener')
  const far = startSession((await port.next()).socket, 'acceptor')
  const stream = near.session.open(Buffer.from('hello'))
  const other = await far.nextStream()
  let received = 0
  for (const each of [stream, other]) {
    each.receiver = {
      onBytes: (bytes) => {
        received += bytes.length
        return 0
      },
      onEnd: () => undefined,
      onClosed: () => undefined,
      onReset: () => undefined,
      onWritable: () => undefined,
    }
    each.resume()
  }
  const wasted = (): number[] =>
    [near, far].map(({ session, socket }) => {
      const carried = carriedBytes(socket)
      assert.ok(carried !== undefined, 'this runtime says what was carried')
      session.tick(performance.now())
      return Number(Reflect.get(Reflect.get(session, 'incoming') as object, 'emptyTlsBytes'))
    })
  const before = wasted()
  for (let i = 0; i < 2_000; i += 1) {
    stream.write(Buffer.from('a'))
    other.write(Buffer.from('b'))
    await new Promise((resolve) => setImmediate(resolve))
  }
  const bulk = Buffer.alloc(200_000)
  stream.write(bulk)
  other.write(bulk)
  await eventually(() => assert.equal(received, 404_005))
  const after = wasted()
  for (const [i, bytes] of after.entries())
    assert.ok(bytes - (before[i] ?? 0) < 70_000, `${bytes - (before[i] ?? 0)} bytes`)
  assert.equal(near.session.isRetired || far.session.isRetired, false)
})
