/**
 * A host with the certificates of many services does its worst with all of them at once, while a pair of services of other
 * hosts goes on: each identity keeps what one caller may do, and still none of the pair's calls is refused, the host's memory
 * stays within bounds, and `hostmesh status` names who it is.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import { issueLeaves, TRUST_DOMAIN, TUNNEL_PORT } from '../harness/file-catalog.ts'
import { startMesh } from '../harness/mesh.ts'
import { keepCalling } from '../harness/steady-calls.ts'
import { letLoose, type ViciousMode, type ViciousOutcome } from '../harness/vicious-peer.ts'

const FOR_MS = 5_000
const MOST_GROWTH_MIB = 128

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
    problem: 'HM_LIMIT_CALLERS_BARRED',
    judge: ({ sessions, thrownOut }) => {
      assert.ok(sessions >= 10)
      assert.ok(thrownOut > 20, `it was thrown out ${thrownOut} times`)
    },
  },
  {
    mode: 'idle',
    identities: 12,
    problem: 'HM_LIMIT_TUNNELS_SHORT',
    judge: ({ most, thrownOut }) => {
      assert.ok(most <= 512, `${most} sessions are open`)
      assert.ok(thrownOut > 0, 'none was refused')
    },
  },
]

test('beside a vicious host', async (t) => {
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
  await b.service('vault', { listens: 8200 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await eventually(() => web.call('db'))
  const residentMiB = (): number =>
    Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${b.daemon.pid}/status`, 'utf8'))?.[1]) / 1_024

  for (const { mode, identities, problem, judge } of attacks)
    await t.test(`that does '${mode}' with ${identities} identities`, async (attack) => {
      const certificates: string[] = []
      for (let i = 0; i < identities; i += 1) {
        const caller = `vicious-${mode}-${i}`
        const folder = join(mesh.folder, caller)
        await issueLeaves(mesh.catalog.caFolder, [caller], folder)
        certificates.push(folder)
      }
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
          serverName: `vault.default.dc1.internal.${TRUST_DOMAIN}`,
          certificates,
          forMs: FOR_MS,
        })
      } finally {
        clearInterval(watch)
      }
      const { problems } = await b.daemon.status()
      assert.deepEqual(await calls.failures(), [], 'calls of the other pair failed')
      attack.diagnostic(
        `${JSON.stringify(outcome)}; ${calls.answered()} calls of the others; ${before.toFixed(0)} -> ${most.toFixed(0)} MiB`,
      )
      assert.ok(calls.answered() > 0)
      judge(outcome)
      assert.ok(most - before <= MOST_GROWTH_MIB, `${before} MiB became ${most} MiB`)
      const told = problems.find(({ code }) => code === problem)
      assert.match(told?.message ?? `none of ${problem}`, new RegExp(`vicious-${mode}-`))
      await eventually(async () => {
        assert.equal(await b.daemon.metric('hostmesh_held_bytes'), 0)
        assert.equal(await b.daemon.metric('hostmesh_tunnel_streams_active'), 0)
        // At most that of web.
        assert.ok((await b.daemon.metric('hostmesh_tunnel_sessions_active')) <= 1)
        assert.ok((await b.daemon.metric('hostmesh_connection_descriptors')) <= 1)
      })
    })
})
