/**
 * What a worker spends on each caller: docs/tunnel-protocol.md, "Fair shares".
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { Account } from '../../src/dataplane/tunnel/accounts.ts'
import { makeAccounts } from './account-fixtures.ts'

const MIB = 1_048_576

describe('opening', () => {
  test('200 aborts a second and bursts of thousands of connections are nothing', () => {
    const { accounts } = makeAccounts()
    const lane = accounts.of('web', 0).lane('db', 0)
    let refused = 0
    for (let nowMs = 0; nowMs < 60_000; nowMs += 5) {
      if (!lane.mayOpen(nowMs)) refused += 1
      lane.noteReset(nowMs)
      if (nowMs % 10_000 !== 0) continue
      // A burst that stands, of which some hundred are given up before.
      for (let i = 0; i < 8_000; i += 1) {
        if (!lane.mayOpen(nowMs)) refused += 1
        if (i % 20 === 0) lane.noteUnsuccessful(nowMs)
      }
    }
    assert.equal(refused, 0)
  })

  test('of 20,000 futile streams a second 5,000 are looked at, then 1,000 a second', () => {
    const { accounts } = makeAccounts()
    const lane = accounts.of('web', 0).lane('db', 0)
    const looked: number[] = []
    for (let second = 0; second < 3; second += 1) {
      let taken = 0
      for (let i = 0; i < 20_000; i += 1) {
        const nowMs = second * 1_000 + i / 20
        if (!lane.mayOpen(nowMs)) continue
        taken += 1
        lane.noteUnsuccessful(nowMs)
      }
      looked.push(taken)
    }
    assert.ok(looked[0]! >= 5_000 && looked[0]! <= 6_100, `${looked[0]}`)
    for (const count of looked.slice(1)) assert.ok(count >= 900 && count <= 1_100, `${count}`)
  })

  test('what is futile at one destination costs nothing at another, nor another caller', () => {
    const { accounts } = makeAccounts()
    const web = accounts.of('web', 0)
    const lane = web.lane('db', 0)
    for (let i = 0; i < 5_000; i += 1) lane.noteUnsuccessful(0)
    assert.equal(lane.mayOpen(0), false)
    assert.equal(web.lane('api', 0).mayOpen(0), true)
    assert.equal(accounts.of('shop', 0).lane('db', 0).mayOpen(0), true)
    assert.equal(web.lane('db', 0), lane)
  })

  test('refusing unseen has an end too, over all destinations', () => {
    const { accounts } = makeAccounts()
    const web = accounts.of('web', 0)
    let refused = 0
    while (web.mayExceed(0)) refused += 1
    assert.equal(refused, 10_000)
    assert.equal(web.mayExceed(1), true)
  })
})

describe('violations', () => {
  const HERE = '10.0.0.1'
  const THERE = '10.0.0.2'

  test('the third bans, each further one for twice as long, and they are forgotten after a time without one', () => {
    const { accounts } = makeAccounts()
    const lane = accounts.of('web', 0).lane('db', 0)
    lane.noteViolation(1_000, HERE)
    lane.noteViolation(1_000, HERE)
    assert.equal(lane.bannedForMs(1_000, HERE), 0)
    lane.noteViolation(1_000, HERE)
    assert.equal(lane.bannedForMs(1_000, HERE), 5_000)
    assert.equal(accounts.tick(1_000).length, 1)
    assert.equal(lane.bannedForMs(6_000, HERE), 0)
    lane.noteViolation(6_000, HERE)
    assert.equal(lane.bannedForMs(6_000, HERE), 10_000)
    let at = 16_000
    for (let further = 0; further < 20; further += 1) {
      lane.noteViolation(at, HERE)
      at += lane.bannedForMs(at, HERE)
    }
    lane.noteViolation(at, HERE)
    assert.equal(lane.bannedForMs(at, HERE), 300_000)
    lane.noteViolation(at + 600_001, HERE)
    assert.equal(lane.bannedForMs(at + 600_001, HERE), 0)
  })

  test('those of sessions that were open when the ban began do not make it longer', () => {
    const { accounts } = makeAccounts()
    const lane = accounts.of('web', 0).lane('db', 0)
    for (let i = 0; i < 60; i += 1) lane.noteViolation(1_000 + i, HERE)
    assert.equal(lane.bannedForMs(1_060, HERE), 5_002 - 60)
  })

  test('ban the address that they came from, and no other host of the service', () => {
    const { accounts } = makeAccounts()
    const lane = accounts.of('web', 0).lane('db', 0)
    for (let i = 0; i < 3; i += 1) lane.noteViolation(1_000, HERE)
    assert.equal(lane.bannedForMs(1_000, THERE), 0)
    assert.ok(lane.isBanned(1_000))
  })

  test('from more addresses than are remembered count as one', () => {
    const { accounts } = makeAccounts()
    const lane = accounts.of('web', 0).lane('db', 0)
    for (let i = 0; i < 256; i += 1) lane.noteViolation(1_000, `10.1.0.${i}`)
    for (let i = 0; i < 3; i += 1) lane.noteViolation(1_000, `10.2.0.${i}`)
    assert.equal(lane.bannedForMs(1_000, '10.3.0.1'), 5_000)
    assert.equal(lane.bannedForMs(1_000, '10.1.0.7'), 0)
  })
})

describe('held bytes', () => {
  test('one caller may hold two thirds, and another still its part', () => {
    const { accounts } = makeAccounts({ heldBytes: 90 * MIB })
    const [hog, meek] = [accounts.of('hog', 0), accounts.of('meek', 0)]
    while (hog.mayHold(MIB)) hog.hold(MIB)
    assert.equal(hog.held.used, 60 * MIB)
    assert.equal(meek.mayHold(4 * MIB), true)
    assert.equal(hog.isTight, true)
  })

  test('a caller is tight from an eighth of what it may have, all are from half of the whole', () => {
    const { accounts } = makeAccounts({ heldBytes: 100 * MIB })
    const [hog, meek] = [accounts.of('hog', 0), accounts.of('meek', 0)]
    hog.hold(10 * MIB)
    assert.equal(hog.isTight, false)
    hog.hold(20 * MIB)
    assert.equal(hog.isTight, true)
    assert.equal(meek.isTight, false)
    hog.hold(21 * MIB)
    assert.equal(meek.isTight, true)
  })

  test('beyond the limit the heaviest gives up half, and again, until it is enough', () => {
    const { accounts, exceeded } = makeAccounts({ heldBytes: 10 * MIB })
    const [hog, meek] = [accounts.of('hog', 0), accounts.of('meek', 0)]
    meek.hold(4 * MIB)
    assert.equal(exceeded(), 0)
    hog.hold(36 * MIB)
    assert.equal(exceeded(), 1)
    const asked: [string, number][] = []
    accounts.shed((account: Account, bytes) => {
      asked.push([account.name, bytes / MIB])
      account.hold(-bytes)
    })
    assert.deepEqual(asked, [
      ['hog', 18],
      ['hog', 9],
      ['hog', 4.5],
    ])
    assert.equal(meek.held.used, 4 * MIB)
  })

  test('the host that holds most gives up, although each of its callers holds less than another host', () => {
    const { accounts } = makeAccounts({ heldBytes: 50 * MIB })
    for (let i = 0; i < 20; i += 1) accounts.of(`evil ${i}`, 0, '10.0.0.1').hold(2 * MIB)
    const web = accounts.of('web', 0, '10.0.0.2')
    web.hold(12 * MIB)
    accounts.shed((account, bytes) => account.hold(-bytes))
    assert.equal(web.held.used, 12 * MIB)
  })

  test('shedding ends when there is nothing to be had', () => {
    const { accounts } = makeAccounts({ heldBytes: 1 })
    accounts.of('hog', 0).hold(100)
    let asked = 0
    accounts.shed(() => {
      asked += 1
    })
    assert.equal(asked, 1)
  })
})

test('callers that have gone are forgotten, those that have or owe something are not', () => {
  const { accounts } = makeAccounts()
  accounts.of('gone', 0).mayOpen(0)
  accounts.of('holds', 0).hold(1)
  accounts.of('struck', 0).lane('db', 0).noteViolation(0, undefined)
  accounts.shared.sessions.add(accounts.of('open', 0).places, 1)
  accounts.tick(0)
  assert.equal(accounts.size, 4)
  accounts.tick(60_000)
  assert.equal(accounts.size, 3)
  accounts.of('holds', 0).hold(-1)
  accounts.tick(300_001)
  assert.equal(accounts.size, 1)
})

test('there are not more than 10,000 accounts: the others share one', () => {
  const { accounts } = makeAccounts()
  for (let i = 0; i < 10_000; i += 1) accounts.of(`service ${i}`, 0)
  assert.equal(accounts.of('one more', 0), accounts.of('and another', 0))
  assert.notEqual(accounts.of('service 1', 0), accounts.of('service 2', 0))
  assert.equal(accounts.size, 10_000)
})

test('an identity is one over all its hosts, an account each; a host has 1,000 accounts at most', () => {
  const { accounts } = makeAccounts()
  const [one, other] = [accounts.of('web', 0, '10.0.0.1'), accounts.of('web', 0, '10.0.0.2')]
  assert.notEqual(one, other)
  for (let i = 0; i < 20_000; i += 1) one.mayOpen(0)
  assert.equal(other.mayOpen(0), false)
  assert.equal(accounts.of('web', 0, '2001:db8::1'), accounts.of('web', 0, '2001:db8::2'))
  for (let i = 0; i < 2_000; i += 1) accounts.of(`evil ${i}`, 0, '10.0.0.1')
  assert.ok(accounts.size < 1_010)
  assert.equal(accounts.of('evil 1500', 0, '10.0.0.1'), accounts.of('evil 1501', 0, '10.0.0.1'))
  accounts.tick(60_000)
  assert.equal(accounts.size, 0)
})
