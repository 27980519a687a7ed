/**
 * One resource for many: nobody takes what the others want.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Share, SharedLimit } from '../../src/lib/shared-limit.ts'

function share(): Share {
  return { used: 0 }
}

/** Takes one by one until nothing more is allowed. */
function takeAll(limit: SharedLimit, by: Share): void {
  while (limit.allows(by, 1)) limit.add(by, 1)
}

test('one that is alone gets most of it, and something is left for whoever comes', () => {
  const limit = new SharedLimit(900, 2)
  const hog = share()
  takeAll(limit, hog)
  assert.equal(hog.used, 600)
  assert.equal(limit.used, 600)
  const late = share()
  assert.equal(limit.allows(late, 1), true)
  takeAll(limit, late)
  assert.ok(late.used >= 150, `${late.used} for the late one`)
  assert.equal(limit.isExceeded, false)
})

test('who has much is stopped first; when it gives back, the other may have more', () => {
  const limit = new SharedLimit(100, 8)
  const [hog, meek] = [share(), share()]
  takeAll(limit, hog)
  limit.add(meek, 1)
  assert.equal(limit.allows(hog, 1), false)
  assert.equal(limit.allows(meek, 1), true)
  limit.add(hog, -50)
  assert.equal(limit.allows(hog, 1), true)
})

test('a hundred users who want all of it get the same, within the limit', () => {
  const limit = new SharedLimit(10_000, 8)
  const users = Array.from({ length: 100 }, share)
  for (let round = 0; round < 10_000; round += 1)
    for (const user of users) if (limit.allows(user, 1)) limit.add(user, 1)
  assert.ok(limit.used <= 10_000)
  const amounts = users.map(({ used }) => used)
  assert.ok(Math.min(...amounts) >= 90, `${Math.min(...amounts)} of 100`)
  assert.ok(Math.max(...amounts) <= 100)
})

test('what has happened counts, also beyond the limit', () => {
  const limit = new SharedLimit(10, 1)
  const one = share()
  limit.add(one, 25)
  assert.equal(limit.isExceeded, true)
  assert.equal(limit.fullness, 2.5)
  assert.equal(limit.allowance, 0)
  limit.add(one, -25)
  assert.equal(limit.used, 0)
})
