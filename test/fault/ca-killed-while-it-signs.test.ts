/**
 * The CA is killed with SIGKILL at any moment: whatever it has handed out can be revoked, and what it said is revoked stays so.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { CertificateAuthority } from '../../src/authority/certificate-authority.ts'
import { createAuthority, readAuthority } from '../../src/authority/roots.ts'
import { systemClock } from '../../src/lib/clock.ts'
import { silentLog } from '../../src/lib/log.ts'
import { eventually } from '../harness/eventually.ts'
import { OwnedProcess } from '../harness/owned-process.ts'

const ROUNDS = 12

test('nothing that was handed out is forgotten, and the next one opens; a reader is never in the way', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'hostmesh-killed-ca-'))
  createAuthority(directory, 'mesh.test', Date.now())
  const open = () => new CertificateAuthority({ directory, log: silentLog, clock: systemClock })
  const program = join(import.meta.dirname, 'signing-authority.ts')
  const issued = new Set<string>()
  const revoked = new Set<string>()
  try {
    for (let round = 0; round < ROUNDS; round += 1) {
      await using process = await OwnedProcess.start(
        ['sh', 'scripts/node.sh', program, directory],
        { name: 'signing authority' },
      )
      await eventually(() => assert.match(process.output, /^issued/m), { withinMs: 20_000 })
      assert.throws(open, { code: 'HM_CA_LOCKED' })
      const endMs = performance.now() + 20 + Math.random() * 300
      while (performance.now() < endMs) {
        assert.equal(readAuthority(directory).trustDomain, 'mesh.test')
        await delay(5)
      }
      await process.kill()
      for (const [, what, serial = ''] of process.output.matchAll(/^(issued|revoked) (\w+)\n/gm))
        (what === 'issued' ? issued : revoked).add(serial)
      using authority = open()
      const list = new Set(authority.trust.bundle.revoked)
      assert.deepEqual([...revoked.difference(list)], [], 'forgotten revocations')
    }
    assert.ok(issued.size > ROUNDS && revoked.size > 0)
    using authority = open()
    const known = new Set(authority.revoke({ host: 'a' }).serials)
    assert.deepEqual([...issued.difference(known)], [], 'forgotten certificates')
  } finally {
    rmSync(directory, { recursive: true })
  }
})
