/**
 * A peer with a valid certificate does its worst to a host, while another pair of services goes on: none of their calls
 * is refused, the host's memory stays within bounds, and nothing remains when it is over. How long calls take
 * meanwhile is told, not asserted: the attacker uses the same processors.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { endless } from '../harness/service.ts'
import type { ViciousMode, ViciousOutcome } from '../harness/vicious-peer.ts'
import { AttackedHost } from './attacked-host.ts'

const FOR_MS = 4_000

interface Attack {
  readonly mode: ViciousMode
  readonly destination: string
  /** What shows that it was stopped, and not for want of trying. */
  readonly judge: (outcome: ViciousOutcome) => void
}

const callerOf = (mode: ViciousMode): string => `vicious-${mode}`

const isThrownOut = ({ opened, thrownOut }: ViciousOutcome): void => {
  assert.ok(opened > 5_000, `it opened ${opened} streams only`)
  assert.ok(thrownOut > 0, 'it was never thrown out')
}

const attacks: readonly Attack[] = [
  { mode: 'slots', destination: 'vault', judge: ({ refused }) => assert.ok(refused > 1_000) },
  { mode: 'openreset', destination: 'files', judge: isThrownOut },
  { mode: 'opendenied', destination: 'vault', judge: isThrownOut },
  { mode: 'badpreface', destination: 'vault', judge: isThrownOut },
  {
    mode: 'zerowindow',
    destination: 'files',
    judge: ({ opened }) => assert.ok(opened >= 500, `${opened} streams`),
  },
  {
    mode: 'sessions',
    destination: 'vault',
    judge: ({ most }) => {
      assert.ok(most > 0 && most <= 64, `${most} sessions are open`)
    },
  },
]

test('beside a vicious peer', async (t) => {
  await using host = await AttackedHost.start(async (mesh) => {
    await mesh.host('b').service('files', { listens: 8081 }).start(endless)
    for (const { mode, destination } of attacks)
      if (destination === 'files') await mesh.allow(callerOf(mode), destination)
  })

  for (const { mode, destination, judge } of attacks)
    await t.test(`that does '${mode}'`, async (attack) => {
      const callers = [callerOf(mode)]
      judge((await host.suffer(attack, { mode, destination, callers, forMs: FOR_MS })).outcome)
    })
})
