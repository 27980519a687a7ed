/**
 * Streams that are not authorized yet: so many of each peer identity, so many of all, and none for longer than its time.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { Arrivals, type Arriving } from '../../src/dataplane/proxy/arrivals.ts'
import type { Account } from '../../src/dataplane/tunnel/accounts.ts'
import { looseAccount, makeAccounts } from './account-fixtures.ts'

interface Recorded extends Arriving {
  expired: number
}

function arriving(account: Account, expiresAtMs: number): Recorded {
  const stream: Recorded = {
    account,
    expiresAtMs,
    expired: 0,
    expire: () => {
      stream.expired += 1
    },
    older: undefined,
    newer: undefined,
  }
  return stream
}

test('each peer has room for so many, as long as so many are free', () => {
  const arrivals = new Arrivals({ perPeer: 2, all: 6 })
  const { accounts } = makeAccounts()
  const [web, cron] = ['web', 'cron'].map((name) => accounts.of(name, 0, '10.0.0.1')) as [
    Account,
    Account,
  ]
  const first = arriving(web, 1)
  arrivals.add(first)
  assert.ok(arrivals.hasRoom(web))
  arrivals.add(arriving(web, 1))
  assert.ok(!arrivals.hasRoom(web))
  assert.ok(arrivals.hasRoom(cron), 'who has none yet is not touched')
  arrivals.delete(first)
  assert.ok(arrivals.hasRoom(web))
  assert.equal(web.unauthorized.used, 1)
})

test('whatever the number of its identities, a host leaves room for the others, and for each of its own', () => {
  const arrivals = new Arrivals({ perPeer: 4_096, all: 20_000 })
  const { accounts } = makeAccounts()
  const fill = (account: Account): number => {
    let count = 0
    for (; arrivals.hasRoom(account); count += 1) arrivals.add(arriving(account, 1))
    return count
  }
  const evil = Array.from({ length: 50 }, (_, i) => accounts.of(`evil ${i}`, 0, '10.0.0.1'))
  for (let round = 0; round < 4_096; round += 1)
    for (const account of evil) if (arrivals.hasRoom(account)) arrivals.add(arriving(account, 1))
  assert.ok(fill(accounts.of('web', 0, '10.0.0.1')) >= 20, 'an honest one of the same host')
  assert.ok(fill(accounts.of('web', 0, '10.0.0.2')) >= 2_000, 'another host')
  assert.ok(fill(accounts.of('api', 0, '10.0.0.3')) >= 1_000, 'a third')
  assert.ok(arrivals.size <= 20_000)
})

test('one identity is one caller, whatever the number of its addresses', () => {
  const arrivals = new Arrivals({ perPeer: 10, all: 20_000 })
  const { accounts } = makeAccounts()
  for (let i = 0; i < 20; i += 1) {
    const account = accounts.of('web', 0, `10.0.0.${i}`)
    if (arrivals.hasRoom(account)) arrivals.add(arriving(account, 1))
  }
  assert.equal(arrivals.size, 10)
})

test('a sweep ends those whose time is over, the oldest first, and no others', () => {
  const arrivals = new Arrivals({ perPeer: 10, all: 10 })
  const web = looseAccount()
  const streams = [100, 200, 300].map((at) => arriving(web, at))
  for (const stream of streams) arrivals.add(stream)
  arrivals.sweep(99)
  assert.equal(arrivals.size, 3)
  arrivals.sweep(200)
  assert.deepEqual(
    streams.map(({ expired }) => expired),
    [1, 1, 0],
  )
  assert.equal(arrivals.size, 1)
  assert.equal(web.unauthorized.used, 1)
  arrivals.sweep(200)
  assert.equal(streams[0]?.expired, 1, 'only once')
})

test('one that takes itself out as it expires is counted once', () => {
  const arrivals = new Arrivals({ perPeer: 10, all: 10 })
  const web = looseAccount()
  const stream: Arriving = {
    ...arriving(web, 5),
    expire: () => arrivals.delete(stream),
  }
  arrivals.add(stream)
  arrivals.sweep(5)
  assert.equal(arrivals.size, 0)
  assert.equal(web.unauthorized.used, 0)
})

test('in whatever order they come and go, the chain holds those that are there, by age', () => {
  const command = fc.record({ what: fc.constantFrom('add', 'delete', 'sweep'), which: fc.nat(30) })
  fc.assert(
    fc.property(fc.array(command, { maxLength: 200 }), (commands) => {
      const arrivals = new Arrivals({ perPeer: 1_000, all: 1_000 })
      const web = looseAccount()
      const made: Recorded[] = []
      let there: Recorded[] = []
      let nowMs = 0
      for (const { what, which } of commands) {
        if (what === 'add') {
          const stream = arriving(web, made.length * 10)
          made.push(stream)
          there.push(stream)
          arrivals.add(stream)
        } else if (what === 'delete') {
          const stream = made[which]
          if (stream === undefined) continue
          // Also what is not there any more.
          arrivals.delete(stream)
          there = there.filter((each) => each !== stream)
        } else {
          nowMs += which
          arrivals.sweep(nowMs)
          for (const each of there.filter(({ expiresAtMs }) => expiresAtMs <= nowMs))
            assert.equal(each.expired, 1)
          there = there.filter(({ expiresAtMs }) => expiresAtMs > nowMs)
        }
        assert.equal(arrivals.size, there.length)
        assert.equal(web.unauthorized.used, there.length)
      }
      arrivals.sweep(Number.POSITIVE_INFINITY)
      assert.equal(arrivals.size, 0)
      for (const stream of made) assert.ok(stream.expired <= 1)
    }),
  )
})
