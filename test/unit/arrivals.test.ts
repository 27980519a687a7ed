/**
 * Streams that are not authorized yet: so many of each peer identity, so many of all, and none for longer than its time.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { Arrivals, type Arriving } from '../../src/dataplane/proxy/arrivals.ts'
import type { Account } from '../../src/dataplane/tunnel/accounts.ts'
import { looseAccount } from './account-fixtures.ts'

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

test('each peer has room for so many, and all together', () => {
  const arrivals = new Arrivals({ perPeer: 2, all: 3 })
  const [web, cron] = [looseAccount(), looseAccount()]
  const first = arriving(web, 1)
  arrivals.add(first)
  assert.ok(arrivals.hasRoom(web))
  arrivals.add(arriving(web, 1))
  assert.ok(!arrivals.hasRoom(web))
  assert.ok(arrivals.hasRoom(cron), 'who has none yet is not touched')
  arrivals.add(arriving(cron, 1))
  assert.ok(!arrivals.hasRoom(cron), 'all have as many as there may be')
  arrivals.delete(first)
  assert.ok(arrivals.hasRoom(web))
  assert.equal(web.unauthorized, 1)
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
  assert.equal(web.unauthorized, 1)
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
  assert.equal(web.unauthorized, 0)
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
        assert.equal(web.unauthorized, there.length)
      }
      arrivals.sweep(Number.POSITIVE_INFINITY)
      assert.equal(arrivals.size, 0)
      for (const stream of made) assert.ok(stream.expired <= 1)
    }),
  )
})
