/**
 * The disk of a CA fills up while it signs: nothing is handed out that is not recorded.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { X509Certificate } from 'node:crypto'
import { mkdtempSync, rmdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { CertificateAuthority } from '../../src/authority/certificate-authority.ts'
import { createAuthority } from '../../src/authority/roots.ts'
import { makeSigningRequest } from '../../src/controlplane/identity/csr.ts'
import { systemClock } from '../../src/lib/clock.ts'
import { silentLog } from '../../src/lib/log.ts'
import { enrollHost } from './authority-host.ts'

test('a certificate is recorded or refused while the disk is full, and room makes all well again', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'hostmesh-full-disk-'))
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=512k', 'hostmesh-test', directory])
  try {
    createAuthority(directory, 'mesh.test', Date.now())
    const open = () => new CertificateAuthority({ directory, log: silentLog, clock: systemClock })
    const given: string[] = []
    {
      using authority = open()
      const caller = enrollHost(authority)
      given.push(caller.certificate.serialNumber)
      const give = async (): Promise<void> => {
        const pem = await authority.sign(caller, 'web', makeSigningRequest().csrPem)
        given.push(new X509Certificate(pem).serialNumber)
      }
      const ballast = join(directory, 'ballast')
      const { bavail, bsize } = statfsSync(directory)
      writeFileSync(ballast, Buffer.alloc((bavail - 12) * bsize))
      const fill = async (): Promise<void> => {
        for (let i = 0; i < 1_000; i += 1) await give()
      }
      const refused = { code: 'HM_CA_UNWRITABLE' }
      await assert.rejects(fill, refused)
      await assert.rejects(give, refused, 'and the next one')
      assert.throws(() => authority.revoke({ host: 'a' }), refused)
      assert.deepEqual(authority.trust.bundle.revoked, [], 'all of a change or nothing')
      assert.equal(authority.status().hosts.length, 1)
      assert.ok(given.length > 5, String(given.length))
      assert.equal(authority.status().certificates, given.length)
      rmSync(ballast)
      await give()
    }
    using again = open()
    assert.equal(again.status().certificates, given.length)
    assert.deepEqual(again.revoke({ host: 'a' }).serials, given)
  } finally {
    execFileSync('umount', [directory])
    rmdirSync(directory)
  }
})
