/**
 * What strangers at the tunnel port may cost, for each source address.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AddressGuard, type Visitor } from '../../src/dataplane/tunnel/address-guard.ts'

const limits = { maxPending: 2, ratePerSecond: 10, burst: 40 }

function enter(guard: AddressGuard, ip: string, nowMs: number): Visitor {
  const visitor = guard.enter(ip, nowMs)
  assert.ok(visitor !== undefined, `${ip} at ${nowMs}`)
  return visitor
}

test('so many handshakes under way from one address, and others are not touched', () => {
  const guard = new AddressGuard(limits, 0)
  const first = enter(guard, '10.0.0.1', 0)
  enter(guard, '10.0.0.1', 0)
  assert.equal(guard.enter('10.0.0.1', 0), undefined)
  enter(guard, '10.0.0.2', 0)
  guard.leave(first)
  enter(guard, '10.0.0.1', 0)
})

test('so many a second, and a failed one counts five times', () => {
  const guard = new AddressGuard(limits, 0)
  let done = 0
  for (let i = 0; i < 100; i += 1) {
    const visitor = guard.enter('10.0.0.1', 0)
    if (visitor === undefined) break
    done += 1
    guard.failed(visitor, 0)
    guard.leave(visitor)
  }
  assert.equal(done, 8)
  assert.ok(guard.enter('10.0.0.1', 99) === undefined)
  enter(guard, '10.0.0.1', 100)
})

test('addresses of one IPv6 network are one', () => {
  const guard = new AddressGuard(limits, 0)
  enter(guard, '2001:db8::1', 0)
  enter(guard, '2001:db8::ffff:2', 0)
  assert.equal(guard.enter('2001:db8:0:0:1::1', 0), undefined)
  enter(guard, '2001:db8:0:1::1', 0)
})

test('addresses that nobody comes from any more are forgotten, and 10,001 of them share what is left', () => {
  const guard = new AddressGuard(limits, 0)
  const ip = (i: number): string => `10.1.${i >> 8}.${i & 255}`
  for (let i = 0; i < 10_000; i += 1) guard.leave(enter(guard, ip(i), 0))
  enter(guard, '10.9.0.1', 0)
  enter(guard, '10.9.0.2', 0)
  assert.equal(guard.enter('10.9.0.3', 0), undefined)
  guard.tick(10_000)
  enter(guard, '10.9.0.3', 10_000)
})
