/** Token buckets of the CA: what an address may do at once, in the long run, and at whose cost. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { RateLimiter } from '../../src/lib/rate-limit.ts'
import { callerAt } from '../../src/model/caller-address.ts'

test('an address has its burst at once and its rate after that, whatever others do', () => {
  const limiter = new RateLimiter({ burst: 3, perSecond: 2 })
  const takes = (address: string, nowMs: number, tries: number): number =>
    Array.from({ length: tries }, () => limiter.take(address, nowMs)).filter(Boolean).length
  assert.equal(takes('a', 0, 10), 3)
  assert.equal(takes('b', 0, 10), 3)
  assert.equal(takes('a', 499, 10), 0)
  assert.equal(takes('a', 1_000, 10), 2)
  assert.equal(takes('a', 1_000_000, 10), 3, 'no more is saved up than the burst')
})

test('asking whether there is one takes none', () => {
  const limiter = new RateLimiter({ burst: 1, perSecond: 0 })
  for (let i = 0; i < 5; i += 1) assert.equal(limiter.has('a', 0), true)
  assert.equal(limiter.take('a', 0), true)
  assert.equal(limiter.has('a', 0), false)
})

test('a flood of addresses makes it forget the quiet ones, not the one that is busy', () => {
  const limiter = new RateLimiter({ burst: 1, perSecond: 0 })
  assert.equal(limiter.take('busy', 0), true)
  for (let i = 0; i < 20_000; i += 1) {
    limiter.take(`flood-${i}`, 0)
    if (i % 1_000 === 0) assert.equal(limiter.take('busy', 0), false)
  }
  assert.equal(limiter.take('flood-1', 0), true, 'forgotten')
})

test('an address of IPv6 counts as its network, one of IPv4 as itself, however it is written', () => {
  assert.equal(callerAt('2001:db8:1:2::1'), callerAt('2001:db8:1:2:ffff:ffff:ffff:ffff'))
  assert.notEqual(callerAt('2001:db8:1:2::1'), callerAt('2001:db8:1:3::1'))
  assert.equal(callerAt('fe80::1%eth0'), callerAt('fe80::2%eth1'))
  assert.equal(callerAt('::ffff:192.0.2.1'), callerAt('192.0.2.1'))
  assert.notEqual(callerAt('192.0.2.1'), callerAt('192.0.2.2'))
  assert.equal(callerAt(undefined), '', 'a caller that is gone already')
})
