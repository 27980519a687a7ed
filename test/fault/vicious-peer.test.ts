/**
 * A peer with a valid certificate does its worst to a host, while another pair of services goes on: none of their calls
 * is refused, the host's memory stays within bounds, and nothing remains when it is over. How long calls take
 * meanwhile is told, not asserted: the attacker uses the same processors.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { issueLeaves, TRUST_DOMAIN, TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'
import { endless } from '../harness/service.ts'
import { keepCalling } from '../harness/steady-calls.ts'
import { letLoose, type ViciousMode, type ViciousOutcome } from '../harness/vicious-peer.ts'

const FOR_MS = 4_000
const MOST_GROWTH_MIB = 128

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
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'outside'],
    catalog: 'file',
    daemonless: ['outside'],
    // Limits are a worker's.
    workers: 1,
  })
  const b = mesh.host('b')
  const web = await mesh.host('a').service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await b.service('files', { listens: 8081 }).start(endless)
  await b.service('vault', { listens: 8200 }).start()
  await mesh.allow('web', 'db')
  for (const { mode, destination } of attacks)
    if (destination === 'files') await mesh.allow(callerOf(mode), destination)
  await mesh.up()
  await eventually(() => web.call('db'))
  const residentMiB = (): number =>
    Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${b.daemon.pid}/status`, 'utf8'))?.[1]) / 1_024

  for (const { mode, destination, judge } of attacks)
    await t.test(`that does '${mode}'`, async (attack) => {
      // Each is a caller of its own: what one has done must not be held against the next.
      const caller = callerOf(mode)
      const certificates = join(mesh.folder, caller)
      await issueLeaves(mesh.catalog.caFolder, [caller], certificates)
      const before = residentMiB()
      let most = before
      const watch = setInterval(() => {
        most = Math.max(most, residentMiB())
      }, 100)
      const calls = keepCalling(() => web.call('db'))
      let outcome: ViciousOutcome
      try {
        outcome = await letLoose(mesh.host('outside').namespace, {
          mode,
          ip: b.namespace.ip,
          port: TUNNEL_PORT,
          serverName: `${destination}.default.dc1.internal.${TRUST_DOMAIN}`,
          certificates: [certificates],
          forMs: FOR_MS,
        })
      } finally {
        clearInterval(watch)
      }
      assert.deepEqual(await calls.failures(), [], 'calls of the other pair failed')
      attack.diagnostic(
        `${JSON.stringify(outcome)}; ${calls.answered()} calls of the others; ${before.toFixed(0)} -> ${most.toFixed(0)} MiB`,
      )
      assert.ok(calls.answered() > 0)
      judge(outcome)
      assert.ok(most - before <= MOST_GROWTH_MIB, `${before} MiB became ${most} MiB`)
      await eventually(async () => {
        assert.equal(await b.daemon.metric('hostmesh_held_bytes'), 0)
        assert.equal(await b.daemon.metric('hostmesh_tunnel_streams_active'), 0)
        // At most that of web.
        assert.ok((await b.daemon.metric('hostmesh_tunnel_sessions_active')) <= 1)
        assert.ok((await b.daemon.metric('hostmesh_connection_descriptors')) <= 1)
      })
    })
})
