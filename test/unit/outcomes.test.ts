/**
 * What a worker remembers of the last connections, and how many probes it answers.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Outcomes } from '../../src/dataplane/proxy/outcomes.ts'
import { ProbeLimit } from '../../src/dataplane/proxy/probe-limit.ts'
import { StreamResetError } from '../../src/dataplane/tunnel/stream.ts'
import { MeshError } from '../../src/lib/errors.ts'

test('the latest success and the latest failure of each pair, with what the far end said', () => {
  const outcomes = new Outcomes()
  outcomes.succeeded('outbound', 'web', 'b/db')
  outcomes.failed('outbound', 'web', 'b/db', new StreamResetError('denied'))
  outcomes.failed('inbound', 'web', 'db', new MeshError('HM_DELIVER_UNREACHABLE', 'Cannot reach'))
  const [first, second] = outcomes.list()
  assert.equal(outcomes.list().length, 2)
  assert.equal(first?.target, 'b/db')
  assert.equal(first.failure?.flag, 'DENY')
  assert.ok((first.okAtMs ?? 0) > 0)
  assert.equal(second?.direction, 'inbound')
  assert.equal(second.failure?.flag, 'UF')
})

test('a caller that hung up says nothing of the target', () => {
  const outcomes = new Outcomes()
  outcomes.failed('outbound', 'web', 'b/db', new MeshError('HM_CALLER_GONE', 'Gone'))
  assert.equal(outcomes.list()[0]?.failure, undefined)
})

test('the memory is bounded, and what came first goes first', () => {
  const outcomes = new Outcomes()
  for (let i = 0; i < 10_000; i += 1) outcomes.succeeded('outbound', `caller-${i % 7}`, `b/${i}`)
  const targets = outcomes.list().map(({ target }) => target)
  assert.equal(targets.length, 4_096)
  assert.ok(targets.includes('b/9999'))
  assert.ok(!targets.includes('b/0'))
})

test('a failed delivery counts until the next one that works', async () => {
  const outcomes = new Outcomes()
  outcomes.undelivered('127.0.0.1:1', new MeshError('HM_DELIVER_TIMEOUT', 'Too slow'))
  assert.equal(outcomes.lastUndelivered('127.0.0.1:1', 60_000)?.reason, 'Too slow')
  assert.equal(outcomes.lastUndelivered('127.0.0.1:1', -1), undefined)
  outcomes.delivered('127.0.0.1:1')
  assert.equal(outcomes.lastUndelivered('127.0.0.1:1', 60_000), undefined)
  assert.equal(outcomes.lastUndelivered('127.0.0.1:2', 60_000), undefined)
})

test('probes are limited for each peer and for all, anew every second', () => {
  const limit = new ProbeLimit()
  const taken = (peer: string, nowMs: number, tries: number, host = peer): number =>
    Array.from({ length: tries }, () => limit.take(peer, host, nowMs)).filter(Boolean).length
  assert.equal(taken('web', 1_000, 20), 5)
  assert.equal(taken('other', 1_500, 20), 5)
  assert.equal(taken('web', 2_000, 20), 5)
  let all = 0
  for (let peer = 0; peer < 100; peer += 1) all += taken(`peer-${peer}`, 3_000, 1)
  assert.equal(all, 50)
  let ofHost = 0
  for (let peer = 0; peer < 100; peer += 1) ofHost += taken(`peer-${peer}`, 4_000, 1, 'a host')
  assert.ok(ofHost <= 34, `${ofHost} of one host`)
  assert.equal(taken('web', 4_000, 20), 5, 'another host has its own')
})
