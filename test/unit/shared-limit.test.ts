/**
 * One resource for many: nobody takes what the others want.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type GroupShare, type Share, SharedLimit } from '../../src/dataplane/io/shared-limit.ts'

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

function group(): GroupShare {
  return { used: 0, users: 0 }
}

test('a group that is one user may have what a user may, many users of it at most twice that of what is free', () => {
  const limit = new SharedLimit(900, 2)
  const host = group()
  const lone: Share = { used: 0, group: host }
  takeAll(limit, lone)
  assert.equal(lone.used, 600)
  limit.add(lone, -600)
  const many = Array.from({ length: 50 }, (): Share => ({ used: 0, group: host }))
  for (let round = 0; round < 900; round += 1)
    for (const user of many) if (limit.allows(user, 1)) limit.add(user, 1)
  assert.ok(host.used <= 720, `${host.used} of 900`)
  const [late, other]: Share[] = [{ used: 0, group: host }, share()]
  assert.equal(limit.allows(late as Share, 1), true, 'one more of the group')
  takeAll(limit, other as Share)
  assert.ok((other?.used ?? 0) >= 120, `${other?.used} for another`)
})

test('what a user has in several groups is one share', () => {
  const limit = new SharedLimit(900, 2)
  const whole = share()
  const parts = Array.from({ length: 10 }, (): Share => ({ used: 0, whole, group: group() }))
  for (const part of parts) takeAll(limit, part)
  assert.equal(whole.used, 600)
  for (const part of parts) limit.add(part, -part.used)
  assert.equal(whole.used + limit.used, 0)
})

test('a user of a group finds room beside one that has taken all of it, also when others take what was free then', () => {
  const limit = new SharedLimit(900, 2)
  const host = group()
  const [hog, meek]: Share[] = [
    { used: 0, group: host },
    { used: 0, group: host },
  ]
  assert.ok(hog !== undefined && meek !== undefined)
  takeAll(limit, hog)
  const elsewhere = Array.from({ length: 5 }, share)
  for (const other of elsewhere) takeAll(limit, other)
  assert.equal(limit.allows(hog, 1), false)
  assert.equal(limit.allows(meek, 1), true)
  const before = host.used
  takeAll(limit, meek)
  assert.ok(host.used - before <= 2 * limit.allowance + 1)
  // However many come that have little, all together have no more than there is.
  const many = Array.from({ length: 1_000 }, (): Share => ({ used: 0, group: host }))
  for (const user of many) if (limit.allows(user, 1)) limit.add(user, 1)
  assert.equal(limit.isExceeded, false)
  for (const user of [hog, meek, ...many]) limit.add(user, -user.used)
  assert.equal(host.used, 0)
  assert.equal(host.users, 0)
})

test('a user of a group finds a little room beside several that have more than the group may have', () => {
  const limit = new SharedLimit(134_000, 2)
  const host = group()
  const greedy = Array.from({ length: 5 }, (): Share => ({ used: 0, group: host }))
  // Bytes that an application had sent before anybody could stop it.
  for (const user of greedy) limit.add(user, 22_000)
  assert.ok(host.used > 2 * limit.allowance)
  for (const user of greedy) assert.equal(limit.allows(user, 1), false)
  const before = limit.allowance
  const meek: Share = { used: 0, group: host }
  takeAll(limit, meek)
  assert.ok(meek.used >= 300, `${meek.used} for the meek one`)
  const others = Array.from({ length: 100 }, (): Share => ({ used: 0, group: host }))
  for (const user of others) takeAll(limit, user)
  assert.ok((others[0]?.used ?? 0) > 0)
  assert.ok(limit.allowance > before * 0.8, `${limit.allowance} left of ${before}`)
})

test('a user of a group that has given back all has its little again, although it had most', () => {
  const limit = new SharedLimit(134_000, 2)
  const host = group()
  const [first, ...others] = Array.from({ length: 6 }, (): Share => ({ used: 0, group: host }))
  assert.ok(first !== undefined)
  limit.add(first, 30_000)
  for (const user of others) limit.add(user, 22_000)
  assert.equal(limit.allows(first, 1), false)
  limit.add(first, -30_000)
  assert.ok(host.used > 2 * limit.allowance)
  assert.equal(limit.allows(first, 1), true)
})
