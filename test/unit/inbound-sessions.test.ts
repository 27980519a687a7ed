/**
 * The sessions that peers have opened: a cap for each place and each identity, and the end of those that nobody uses.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type InboundSession,
  InboundSessions,
} from '../../src/dataplane/tunnel/inbound-sessions.ts'
import type { Session } from '../../src/dataplane/tunnel/session.ts'
import { makeAccounts } from './account-fixtures.ts'

const limits = { perPlace: 2, perHost: 10, idleMs: 300_000 }

/** Sessions of a worker that never carry anything, at a time that the test sets. */
function makeSessions(maxSessions = 1_000): {
  readonly sessions: InboundSessions
  readonly open: (
    caller: string,
    openedAtMs: number,
    ip?: string,
    destination?: string,
  ) => InboundSession
  readonly rejectionReason: (
    caller: string,
    nowMs: number,
    ip?: string,
    destination?: string,
  ) => unknown
  readonly drained: InboundSession[]
  readonly used: () => { places: number; descriptors: number }
} {
  const { accounts } = makeAccounts({ sessions: maxSessions })
  const sessions = new InboundSessions(limits)
  const drained: InboundSession[] = []
  const place = (caller: string, ip: string, destination: string) => ({
    peer: { spiffeId: `spiffe://mesh.test/${caller}`, service: caller } as InboundSession['peer'],
    destination,
    lane: accounts.of(caller, 0, ip).lane(destination, 0),
    ip,
  })
  return {
    sessions,
    drained,
    open: (caller, openedAtMs, ip = '10.0.0.1', destination = 'db') => {
      const session = {
        idleMs: (nowMs: number) => nowMs - openedAtMs,
        drain: () => {
          drained.push(inbound)
          sessions.delete(inbound)
        },
      } as Partial<Session> as Session
      const inbound: InboundSession = {
        ...place(caller, ip, destination),
        session,
        address: { ip, port: 1 },
        certificates: {} as InboundSession['certificates'],
        notAfterMs: Number.POSITIVE_INFINITY,
      }
      sessions.add(inbound)
      return inbound
    },
    rejectionReason: (caller, nowMs, ip = '10.0.0.1', destination = 'db') =>
      sessions.rejectionReason(place(caller, ip, destination), nowMs)?.code,
    used: () => ({
      places: accounts.shared.sessions.used,
      descriptors: accounts.shared.descriptors.used,
    }),
  }
}

test('one place may have so many; other addresses, destinations and callers are not touched', () => {
  const { open, rejectionReason } = makeSessions()
  assert.equal(rejectionReason('web', 0), undefined)
  open('web', 0)
  open('web', 0)
  assert.equal(rejectionReason('web', 1_000), 'HM_LIMIT_SESSIONS')
  assert.equal(rejectionReason('web', 1_000, '10.0.0.2'), undefined)
  assert.equal(rejectionReason('web', 1_000, '10.0.0.1', 'cache'), undefined)
  assert.equal(rejectionReason('cron', 1_000), undefined)
})

test('a further one takes the place of the oldest that has been idle for half a minute', () => {
  const { open, rejectionReason, drained } = makeSessions()
  open('web', 10)
  const oldest = open('web', 0)
  assert.equal(rejectionReason('web', 29_999), 'HM_LIMIT_SESSIONS')
  assert.deepEqual(drained, [])
  assert.equal(rejectionReason('web', 30_000), undefined)
  assert.deepEqual(drained, [oldest])
})

test('one identity has half of what is free, over all its addresses', () => {
  const { open, rejectionReason } = makeSessions(10)
  let count = 0
  while (rejectionReason('web', 0, `10.0.0.${count}`) === undefined) {
    open('web', 0, `10.0.0.${count}`)
    count += 1
  }
  assert.equal(count, 5)
  assert.equal(rejectionReason('cron', 0), undefined, 'there is room for others')
})

test('all identities of one host have so many, then its own oldest idle one makes room', () => {
  const { open, rejectionReason, drained } = makeSessions()
  for (let i = 0; i < 10; i += 1) {
    assert.equal(rejectionReason(`evil ${i}`, 0), undefined)
    open(`evil ${i}`, i)
  }
  assert.equal(rejectionReason('web', 1_000), 'HM_LIMIT_SESSIONS')
  assert.equal(rejectionReason('web', 1_000, '10.0.0.2'), undefined, 'another host is not touched')
  assert.equal(rejectionReason('web', 30_000), undefined)
  assert.equal(drained[0]?.peer.service, 'evil 0')
})

test('the addresses of an IPv6 network are one host', () => {
  const { open, rejectionReason } = makeSessions()
  for (let i = 0; i < 10; i += 1) open('web', 0, `2001:db8::${i + 1}`, `db ${i}`)
  assert.equal(rejectionReason('web', 0, '2001:db8::ff'), 'HM_LIMIT_SESSIONS')
  assert.equal(rejectionReason('web', 0, '2001:db8:0:1::1'), undefined)
})

test('when there are as many as may be, who comes gets the place of an idle one of the host with most', () => {
  const { open, rejectionReason, drained } = makeSessions(12)
  for (let i = 0; i < 8; i += 1) open(`evil ${i}`, i)
  for (let i = 0; i < 4; i += 1) open(`service ${i}`, 0, `10.0.0.${i + 2}`)
  assert.equal(rejectionReason('web', 1_000, '10.0.0.9'), 'HM_LIMIT_SESSIONS')
  assert.equal(rejectionReason('web', 30_000, '10.0.0.9'), undefined)
  assert.deepEqual(
    drained.map(({ peer }) => peer.service),
    ['evil 0'],
  )
})

test('what a session takes is given back once', () => {
  const { sessions, open, used } = makeSessions()
  const one = open('web', 0)
  open('web', 0)
  assert.deepEqual(used(), { places: 2, descriptors: 2 })
  sessions.delete(one)
  sessions.delete(one)
  assert.deepEqual(used(), { places: 1, descriptors: 1 })
  assert.equal(sessions.size, 1)
})

test('what its opener has forgotten is closed a minute after the opener should have', () => {
  const { sessions, open, drained } = makeSessions()
  const forgotten = open('web', 0)
  open('web', 1_000)
  sessions.tick(360_000)
  assert.deepEqual(drained, [])
  sessions.tick(360_001)
  assert.deepEqual(drained, [forgotten])
  assert.equal(sessions.size, 1)
})
