/** A host of a CA that is open in this process. */
import { X509Certificate } from 'node:crypto'
import type { CertificateAuthority } from '../../src/authority/certificate-authority.ts'
import type { HostCaller } from '../../src/authority/hosts.ts'
import { makeSigningRequest } from '../../src/controlplane/identity/csr.ts'
import { parseJoinToken } from '../../src/model/join-token.ts'

/** Enrolls host `a`, which may have certificates for `web`. */
export function enrollHost(authority: CertificateAuthority): HostCaller {
  const request = { host: 'a', datacenter: 'dc1', services: ['web'], ttlMs: 60_000 }
  const { token } = authority.createToken({ ...request, address: 'ca.test:1' })
  const { id, secret, host } = parseJoinToken(token, 'the test')
  const { csrPem: csr } = makeSigningRequest()
  const pem = authority.enroll({ id, secret, host, csr }, 'here')
  return authority.identifyHost(new X509Certificate(pem))
}
