/**
 * The operations of `hostmesh ca`: creates a CA, issues certificates into the directory of a host, shows a CA.
 *
 * Issuing is all or nothing until the files are written: every certificate is made, and validated as the daemon would
 * do it, before the first file is changed.
 */
import { existsSync, mkdirSync } from 'node:fs'
import {
  leafFiles,
  readHostRoots,
  requireFileName,
  rootFiles,
} from '../controlplane/identity/host-directory.ts'
import { parseCertificates, readLeaf, readRoots } from '../controlplane/identity/x509.ts'
import { writeFileAtomically } from '../lib/atomic-file.ts'
import { MeshError } from '../lib/errors.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import { issueLeaf, LEAF_LIFETIME_MS, requireDatacenter } from './issue-certificate.ts'
import { createAuthority, holdsAuthority, readAuthority, type StoredAuthority } from './roots.ts'

export { LEAF_LIFETIME_MS }

/** The facts about a CA, without its key. */
export interface AuthorityFacts {
  readonly directory: string
  readonly certificatePath: string
  readonly trustDomain: string
  readonly subject: string
  readonly serialNumber: string
  /** SHA-256 of the certificate, in hex with colons. */
  readonly fingerprint: string
  readonly notBeforeMs: number
  readonly notAfterMs: number
}

/** What to issue, and for which directory. */
export interface IssueRequest {
  /** The directory of the CA. */
  readonly directory: string
  readonly datacenter: string
  readonly services: readonly string[]
  /** The directory of the host; created if necessary. */
  readonly out: string
  readonly lifetimeMs?: number | undefined
}

/** What was issued. */
export interface IssuedFiles {
  readonly trustDomain: string
  /** How many roots the host trusts now. */
  readonly roots: number
  readonly leaves: readonly IssuedLeaf[]
  /** Every file that was written. */
  readonly paths: readonly string[]
}

/** One issued certificate, without its key. */
export interface IssuedLeaf {
  readonly service: string
  readonly spiffeId: string
  readonly serialNumber: string
  readonly notAfterMs: number
}

/**
 * Creates a CA: P-256, ten years.
 * @throws MeshError HM_CA_EXISTS, HM_CA_NAME_INVALID, HM_CA_UNWRITABLE
 */
export function initCa(directory: string, trustDomain: string, nowMs = Date.now()): AuthorityFacts {
  createAuthority(directory, trustDomain, nowMs)
  return showCa(directory)
}

/**
 * Reads a CA including its key, so that a CA that is shown is usable.
 * @throws MeshError as {@link readAuthority}
 */
export function showCa(directory: string): AuthorityFacts {
  const { certificate, certificatePath, trustDomain } = readAuthority(directory)
  return {
    directory,
    certificatePath,
    trustDomain,
    subject: certificate.subject.replaceAll('\n', ', '),
    serialNumber: certificate.serialNumber,
    fingerprint: certificate.fingerprint256,
    notBeforeMs: certificate.validFromDate.getTime(),
    notAfterMs: certificate.validToDate.getTime(),
  }
}

/**
 * Issues a certificate and key for each service into a host's directory, with the roots. Existing roots that are still
 * valid stay, so that a host can trust an old and a new CA at once.
 * @throws MeshError HM_CA_OUT_INVALID, HM_CA_LIFETIME_INVALID, HM_CA_NAME_INVALID, HM_CA_DATACENTER_INVALID,
 * HM_CA_UNWRITABLE, HM_CERT_SERVICE_INVALID, and as {@link readAuthority}
 */
export function issueCertificates(request: IssueRequest, nowMs = Date.now()): IssuedFiles {
  const { datacenter, out } = request
  requireDatacenter(datacenter)
  const services = [...new Set(request.services)]
  for (const service of services) requireFileName(service)
  const authority = readAuthority(request.directory)
  if (holdsAuthority(out))
    throw new MeshError(
      'HM_CA_OUT_INVALID',
      `Cannot issue into ${out}: it is the directory of a CA`,
      {
        hint: 'Give each host a directory of its own; the key of the CA must never be on a host',
      },
    )
  const bundle = mergeRoots(authority, out, nowMs)
  const lifetimeMs = request.lifetimeMs ?? LEAF_LIFETIME_MS
  const leaves = services.map((service) => {
    const identity = { trustDomain: authority.trustDomain, datacenter, service }
    const issued = issueLeaf(authority, identity, { nowMs, lifetimeMs })
    return readLeaf({ service, datacenter, ...issued }, bundle, nowMs)
  })
  return {
    trustDomain: bundle.trustDomain,
    roots: bundle.rootsPem.length,
    leaves: leaves.map(({ service, spiffeId, serialNumber, notAfterMs }) => ({
      service,
      spiffeId,
      serialNumber,
      notAfterMs,
    })),
    paths: writeHost(out, bundle, leaves),
  }
}

/** The roots of the host and that of the CA. */
function mergeRoots(authority: StoredAuthority, out: string, nowMs: number): TrustBundle {
  const { trustDomain, certificatePem } = authority
  const files = rootFiles(out)
  if (!existsSync(files.trustDomain) && !existsSync(files.roots))
    return readRoots(certificatePem, trustDomain)
  const old = readHostRoots(out)
  if (old.trustDomain !== trustDomain)
    throw new MeshError(
      'HM_CA_OUT_INVALID',
      `Cannot issue into ${out}: that host is of trust domain ${old.trustDomain}, the CA of ${trustDomain}`,
      { hint: 'Give another directory; to move a host, empty its directory first' },
    )
  const valid = old.rootsPem.filter((pem) =>
    parseCertificates(pem, files.roots).every((root) => root.validToDate.getTime() > nowMs),
  )
  return readRoots([certificatePem, ...valid].join('\n'), trustDomain)
}

/** Roots first, then keys before certificates: at any moment a reader finds matching files, or keeps what it has. */
function writeHost(out: string, bundle: TrustBundle, leaves: readonly Leaf[]): string[] {
  const roots = rootFiles(out)
  const paths: string[] = []
  const write = (path: string, text: string, mode: number): void => {
    writeFileAtomically(path, text, { mode, existing: 'replace' })
    paths.push(path)
  }
  try {
    mkdirSync(out, { recursive: true, mode: 0o755 })
    write(roots.trustDomain, `${bundle.trustDomain}\n`, 0o644)
    write(roots.roots, bundle.rootsPem.join(''), 0o644)
    for (const leaf of leaves) {
      const files = leafFiles(out, leaf.service)
      write(files.privateKey, leaf.privateKeyPem, 0o600)
      write(files.certificate, leaf.certificatePem, 0o644)
    }
  } catch (thrown) {
    throw new MeshError('HM_CA_UNWRITABLE', `Cannot write certificates into ${out}`, {
      cause: thrown,
      hint: 'Check that the directory may be written to; then issue again, which replaces all of them',
    })
  }
  return paths
}
