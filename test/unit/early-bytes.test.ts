/**
 * What a caller says before an instance has confirmed: forwarded, kept, replayed to another instance, handed over.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { EarlyBytes, ReplayableBytes } from '../../src/dataplane/proxy/early-bytes.ts'
import { UNCONFIRMED_LIMIT } from '../../src/dataplane/tunnel/stream.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { looseAccount } from './account-fixtures.ts'
import { FakeStream } from './fake-stream.ts'

const account = looseAccount()

function makeCaller(): { source: FakeStream; early: ReplayableBytes } {
  const source = new FakeStream()
  return { source, early: new ReplayableBytes(source, account) }
}

/** All that a stream was given, and whether it was ended. */
function heard(stream: FakeStream): string {
  const text = Buffer.concat(stream.given.splice(0)).toString()
  return stream.look().includes('end') ? `${text}.` : text
}

function say(caller: FakeStream, text: string): void {
  const memory = Buffer.from(text)
  caller.receiver.onBytes(memory)
  // It belongs to whoever reads.
  memory.fill('!')
}

test('pieces become one, whatever their sizes, and memory that is read again is not kept', () => {
  const early = new EarlyBytes()
  const pieces = Array.from({ length: 300 }, (_, i) => Buffer.alloc(i % 7, String(i % 10)))
  const all = Buffer.concat(pieces)
  for (const piece of pieces) {
    early.onBytes(piece)
    piece.fill('!')
  }
  assert.deepEqual(Buffer.from(early.bytes), all)
  early.bytes = early.bytes.subarray(100)
  early.onBytes(Buffer.from('more'))
  assert.equal(Buffer.from(early.bytes).toString(), `${all.subarray(100).toString()}more`)
})

test('a caller is not read before there is somebody to speak to; what it says is forwarded', () => {
  const { source, early } = makeCaller()
  assert.deepEqual(source.look(), [])
  const first = new FakeStream()
  early.forwardTo(first, () => undefined)
  assert.deepEqual(source.look(), ['resume'])
  say(source, 'one ')
  say(source, 'two')
  assert.equal(heard(first), 'one two')
  early.handOver(first)
  assert.equal(heard(first), '', 'it has it all')
})

test('the time of the first bytes stays, whatever is said later and to whom', () => {
  const { source, early } = makeCaller()
  early.forwardTo(new FakeStream(), () => undefined)
  assert.equal(early.firstMs, 0)
  const beforeMs = performance.now()
  say(source, 'one ')
  const { firstMs } = early
  assert.ok(firstMs >= beforeMs && firstMs <= performance.now())
  early.stopForwarding()
  early.forwardTo(new FakeStream(), () => undefined)
  say(source, 'two')
  early.handOver(new FakeStream())
  assert.equal(early.firstMs, firstMs)
})

test('another instance hears all of it from the beginning, with the end', () => {
  const { source, early } = makeCaller()
  const [first, second, third] = [new FakeStream(), new FakeStream(), new FakeStream()]
  early.forwardTo(first, () => undefined)
  say(source, 'hello')
  early.stopForwarding()
  say(source, ', world')
  early.forwardTo(second, () => undefined)
  assert.equal(heard(second), 'hello, world')
  source.receiver.onEnd()
  assert.equal(heard(second), '.')
  early.handOver(third)
  assert.equal(heard(third), 'hello, world.')
  assert.equal(heard(first), 'hello')
})

test('no more than the limit is forwarded and read; the rest is handed over, and the end after it', () => {
  const { source, early } = makeCaller()
  const target = new FakeStream()
  early.forwardTo(target, () => undefined)
  const text = 'x'.repeat(UNCONFIRMED_LIMIT + 10)
  say(source, text)
  source.receiver.onEnd()
  assert.deepEqual(source.look(), ['resume', 'pause'])
  assert.equal(heard(target), text.slice(0, UNCONFIRMED_LIMIT))
  assert.equal(account.held.used, text.length)
  early.handOver(target)
  assert.equal(heard(target), `${'x'.repeat(10)}.`)
  assert.equal(account.held.used, 0)
})

test('who hangs up, or is given up, is gone for whoever asks, and for the present target', () => {
  const told: string[] = []
  for (const end of ['reset', 'given up']) {
    const { source, early } = makeCaller()
    early.forwardTo(new FakeStream(), (reason) => told.push((reason as MeshError).code))
    if (end === 'reset') source.receiver.onReset(new Error('ECONNRESET'))
    else early.giveUp(new MeshError('HM_POLICY_DENIED', 'changed'))
    assert.equal(early.isGone, true)
    assert.equal(early.goneError().code, told.at(-1))
    assert.equal(source.look().includes('reset'), end === 'given up')
  }
  assert.deepEqual(told, ['HM_CALLER_GONE', 'HM_POLICY_DENIED'])
})
