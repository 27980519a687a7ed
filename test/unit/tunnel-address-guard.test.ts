/**
 * What strangers at the tunnel port may cost, for each source address.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { AddressGuard, type TrackedAddress } from '../../src/dataplane/tunnel/address-guard.ts'

const limits = { maxPending: 2, maxPendingOfAll: 100_000, ratePerSecond: 10, burst: 40 }

function enter(guard: AddressGuard, ip: string, nowMs: number): TrackedAddress {
  const address = guard.enter(ip, nowMs)
  assert.ok(address !== undefined, `${ip} at ${nowMs}`)
  return address
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

test('so many a second, with a burst', () => {
  const guard = new AddressGuard(limits, 0)
  for (let i = 0; i < 40; i += 1) guard.leave(enter(guard, '10.0.0.1', 0))
  assert.equal(guard.enter('10.0.0.1', 99), undefined)
  guard.leave(enter(guard, '10.0.0.1', 100))
  assert.equal(guard.enter('10.0.0.1', 100), undefined)
})

test('who makes handshakes that come to nothing is turned away long before who makes good ones, and comes again later', () => {
  const guard = new AddressGuard(
    { maxPendingOfAll: 100_000, maxPending: 2, ratePerSecond: 1_000, burst: 4_000 },
    0,
  )
  const tryFor = (ip: string, isFutile: boolean): number => {
    for (let done = 0; done < 1_000; done += 1) {
      const address = guard.enter(ip, 0)
      if (address === undefined) return done
      if (isFutile) guard.noteUnsuccessful(address, 0)
      guard.leave(address)
    }
    return 1_000
  }
  assert.equal(tryFor('10.0.0.1', true), 100)
  assert.equal(tryFor('10.0.0.2', false), 1_000)
  assert.equal(guard.enter('10.0.0.1', 49), undefined)
  enter(guard, '10.0.0.1', 50)
})

test('what was under way when the others came to nothing is paid for, too', () => {
  const guard = new AddressGuard(
    { maxPendingOfAll: 100_000, maxPending: 200, ratePerSecond: 1_000, burst: 4_000 },
    0,
  )
  const under = Array.from({ length: 150 }, () => enter(guard, '10.0.0.1', 0))
  for (const address of under) {
    guard.noteUnsuccessful(address, 0)
    guard.leave(address)
  }
  assert.equal(guard.enter('10.0.0.1', 2_500), undefined)
  enter(guard, '10.0.0.1', 2_550)
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

test('a few addresses cannot keep others out, whatever each may have', () => {
  const guard = new AddressGuard(
    { ...limits, maxPending: 128, maxPendingOfAll: 512, burst: 1_000 },
    0,
  )
  let taken = 0
  for (let i = 0; i < 128; i += 1)
    for (let address = 1; address <= 5; address += 1)
      if (guard.enter(`10.0.0.${address}`, 0) !== undefined) taken += 1
  for (let i = 0; i < 40; i += 1) enter(guard, '10.0.1.1', 0)
  assert.ok(taken + 40 <= 512, `${taken} were taken before`)
})
