/** The hub of the live view: made once for all, only while somebody listens, and never slower for who is slow. */
import assert from 'node:assert/strict'
import { EventEmitter } from 'node:events'
import type { ServerResponse } from 'node:http'
import { test } from 'node:test'
import { LiveHub } from '../../src/aggregator/live.ts'
import { silentLog } from '../../src/lib/log.ts'
import type { LiveEvent } from '../../src/model/fleet.ts'
import { eventually } from '../harness/eventually.ts'

/** An answer whose reader takes everything, or nothing after the head. */
class FakeResponse extends EventEmitter {
  readonly written: string[] = []
  isTaking = true
  destroyed = false
  writableLength = 0
  writeHead(): this {
    return this
  }
  write(bytes: Buffer | string): boolean {
    this.written.push(bytes.toString())
    if (!this.isTaking) this.writableLength += bytes.length
    return this.isTaking
  }
  destroy(): void {
    this.destroyed = true
    this.emit('close')
  }
  get events(): number {
    return this.written.filter((text) => text.startsWith('data: ')).length
  }
}

function hubOf(everyMs: number): {
  hub: LiveHub
  reads: () => number
  add: () => FakeResponse
} {
  let reads = 0
  const read = async (): Promise<LiveEvent> => {
    reads += 1
    return {} as LiveEvent
  }
  const hub = new LiveHub({ read, log: silentLog, everyMs })
  const add = (): FakeResponse => {
    const response = new FakeResponse()
    hub.add(response as unknown as ServerResponse)
    return response
  }
  return { hub, reads: () => reads, add }
}

test('all listeners get the same events, and nothing is made when they are gone', async () => {
  const { hub, reads, add } = hubOf(5)
  using _ = hub
  assert.equal(reads(), 0)
  const listeners = [add(), add(), add()]
  await eventually(() => assert.ok(listeners.every(({ events }) => events >= 3)))
  const most = Math.max(...listeners.map(({ events }) => events))
  assert.ok(reads() <= most + 1, `${reads()} reads for ${most} events`)
  for (const listener of listeners) listener.destroy()
  assert.equal(hub.listeners, 0)
  const before = reads()
  // Several periods: one read may have been under way.
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.ok(reads() <= before + 1)
  const late = add()
  await eventually(() => assert.ok(late.events >= 1))
})

test('a listener that takes nothing is left out, then dropped; the others get every event', async () => {
  const { hub, add } = hubOf(5)
  using _ = hub
  const [slow, quick] = [add(), add()]
  slow.isTaking = false
  await eventually(() => assert.ok(slow.destroyed))
  assert.ok(slow.events <= 2, 'no event is kept for it while one waits')
  const events = quick.events
  await eventually(() => assert.ok(quick.events > events))
  assert.equal(quick.destroyed, false)
  assert.equal(hub.listeners, 1)
})

test('an event that cannot be made is left out, and the next one comes', async () => {
  let reads = 0
  const read = async (): Promise<LiveEvent> => {
    reads += 1
    if (reads < 3) throw new Error('not now')
    return {} as LiveEvent
  }
  using hub = new LiveHub({ read, log: silentLog, everyMs: 5 })
  const response = new FakeResponse()
  hub.add(response as unknown as ServerResponse)
  await eventually(() => assert.ok(response.events >= 1))
})
