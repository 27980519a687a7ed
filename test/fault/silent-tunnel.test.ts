/**
 * Which streams of a tunnel are let go when the peer's host is silent: those that have somewhere else to go, as soon as
 * the round trip says so, and never one whose bytes the peer may have.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { before, test } from 'node:test'

import { within } from '../harness/eventually.ts'
import { OwnedProcess } from '../harness/owned-process.ts'
import type { SilentOutcome } from '../harness/services/silent-tunnel.ts'

const script = join(import.meta.dirname, '../harness/services/silent-tunnel.ts')

const outcomes = new Map<string, SilentOutcome>()

before(async () => {
  const inside = `ip link set lo up && exec "${process.execPath}" "${script}"`
  await using played = await OwnedProcess.start(['unshare', '--net', 'sh', '-c', inside], {
    name: 'silent tunnel',
    ipc: true,
  })
  played.child.on('message', (outcome: SilentOutcome) => outcomes.set(outcome.name, outcome))
  await within(60_000, 'all cases', played.exited)
})

function outcomeOf(name: string): SilentOutcome {
  const outcome = outcomes.get(name)
  assert.ok(outcome !== undefined, 'the case was not played')
  return outcome
}

test('with no other connection in it the tunnel is given up, and what was said is not sent again', () => {
  const { endings, delivered } = outcomeOf('alone')
  assert.deepEqual(endings, ['HM_TUNNEL_SILENT'])
  assert.equal(delivered, '')
})

test('a stream that has nowhere else to go waits, and arrives when the host is back', () => {
  const { endings, delivered, isSuspect } = outcomeOf('nowhere to go')
  assert.deepEqual(endings, [undefined])
  assert.ok(isSuspect, 'new calls go elsewhere')
  assert.equal(delivered, 'hello')
})

test('connections that stand are not given up for one that has spoken', () => {
  const { endings, isSuspect } = outcomeOf('beside others')
  assert.deepEqual(endings, [undefined, undefined])
  assert.ok(isSuspect, 'new calls go elsewhere')
})

test('one that has said nothing leaves alone', () => {
  assert.deepEqual(outcomeOf('beside others, unsaid').endings, [undefined, 'HM_TUNNEL_UNANSWERED'])
})

test('after three seconds the host is dead for all', () => {
  const { endings, delivered } = outcomeOf('beside others, long')
  assert.deepEqual(endings, ['HM_TUNNEL_SILENT', 'HM_TUNNEL_SILENT'])
  assert.equal(delivered, '')
})

test('a host whose kernel acknowledges lives: nobody leaves, because its daemon may still read', () => {
  const { endings, isSuspect } = outcomeOf('slow')
  assert.deepEqual(endings, [undefined])
  assert.equal(isSuspect, false)
})
