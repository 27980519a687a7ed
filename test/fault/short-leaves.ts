/**
 * Certificates that live for seconds, written into a host's folder as a CA's agent would: what happens to a
 * fleet in three days happens to it in a test.
 */
import { rename, writeFile } from 'node:fs/promises'
import { issueLeaf } from '../../src/authority/issue-certificate.ts'
import { readAuthority } from '../../src/authority/roots.ts'
import { leafFiles } from '../../src/controlplane/identity/host-directory.ts'
import { type FileCatalog, TRUST_DOMAIN } from '../harness/file-catalog.ts'

/** Issues a leaf of `service` that ends `lifetimeMs` from now; returns when it ends, wall clock. */
export async function issueShortLeaf(
  catalog: FileCatalog,
  { host, service, lifetimeMs }: { host: string; service: string; lifetimeMs: number },
): Promise<number> {
  const nowMs = Date.now()
  const issued = issueLeaf(
    readAuthority(catalog.caFolder),
    { trustDomain: TRUST_DOMAIN, datacenter: 'dc1', service },
    { nowMs, lifetimeMs },
  )
  const files = leafFiles(catalog.certificateFolder(host), service)
  for (const [path, text] of [
    [files.privateKey, issued.privateKeyPem],
    [files.certificate, issued.certificatePem],
  ] as const) {
    await writeFile(`${path}.new`, text, { mode: 0o600 })
    await rename(`${path}.new`, path)
  }
  return nowMs + lifetimeMs
}
