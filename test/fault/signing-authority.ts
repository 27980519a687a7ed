/**
 * A program for ca-killed-while-it-signs.test.ts: opens the CA in a directory, and enrolls, signs and revokes until it
 * is killed. What it has handed out it says, a line each: `issued SERIAL`, `revoked SERIAL`.
 */
import { X509Certificate } from 'node:crypto'
import { writeSync } from 'node:fs'
import { CertificateAuthority } from '../../src/authority/certificate-authority.ts'
import { makeSigningRequest } from '../../src/controlplane/identity/csr.ts'
import { systemClock } from '../../src/lib/clock.ts'
import { silentLog } from '../../src/lib/log.ts'
import { enrollHost } from './authority-host.ts'

const [, , directory = ''] = process.argv
const authority = new CertificateAuthority({ directory, log: silentLog, clock: systemClock })
const say = (what: string): number => writeSync(1, `${what}\n`)

for (;;) {
  const caller = enrollHost(authority)
  say(`issued ${caller.certificate.serialNumber}`)
  for (let i = 0; i < 5; i += 1) {
    const pem = await authority.sign(caller, 'web', makeSigningRequest().csrPem)
    const serial = new X509Certificate(pem).serialNumber
    say(`issued ${serial}`)
    if (i % 2 === 0) continue
    authority.revoke({ serial })
    say(`revoked ${serial}`)
  }
}
