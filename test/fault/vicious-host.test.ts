/**
 * A host with the certificates of many services does its worst with all of them at once, while a pair of services of other
 * hosts goes on: each identity keeps what one caller may do, and still none of the pair's calls is refused, the host's memory
 * stays within bounds, and `hostmesh status` names who it is.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { ViciousMode, ViciousOutcome } from '../harness/vicious-peer.ts'
import { AttackedHost } from './attacked-host.ts'

const FOR_MS = 5_000

interface Attack {
  readonly mode: ViciousMode
  readonly identities: number
  /** The problem that names the host or its identities. */
  readonly problem: string
  readonly judge: (outcome: ViciousOutcome) => void
}

const attacks: readonly Attack[] = [
  {
    mode: 'renewedslots',
    identities: 6,
    problem: 'HM_LIMIT_STREAMS_SHORT',
    judge: ({ opened, refused }) => {
      assert.ok(opened > 20_000, `it opened ${opened} streams only`)
      assert.ok(refused > 1_000, `${refused} were refused`)
    },
  },
  {
    mode: 'tinycredit',
    identities: 10,
    problem: 'HM_LIMIT_CALLERS_BANNED',
    judge: ({ sessions, thrownOut }) => {
      assert.ok(sessions >= 10, `it had ${sessions} sessions`)
      assert.ok(thrownOut > 20, `it was thrown out ${thrownOut} times`)
    },
  },
  {
    mode: 'idle',
    identities: 12,
    problem: 'HM_LIMIT_TUNNELS_SHORT',
    judge: ({ most, thrownOut }) => {
      assert.ok(most > 0 && most <= 512, `${most} sessions are open`)
      assert.ok(thrownOut > 0, 'none was refused')
    },
  },
]

test('beside a vicious host', async (t) => {
  await using host = await AttackedHost.start()

  for (const { mode, identities, problem, judge } of attacks)
    await t.test(`that does '${mode}' with ${identities} identities`, async (attack) => {
      const callers = Array.from({ length: identities }, (_, i) => `vicious-${mode}-${i}`)
      const { outcome, problems } = await host.suffer(attack, {
        mode,
        destination: 'vault',
        callers,
        forMs: FOR_MS,
      })
      judge(outcome)
      const told = problems.find(({ code }) => code === problem)
      assert.match(told?.message ?? `none of ${problem}`, new RegExp(`vicious-${mode}-`))
    })
})
