/**
 * The keys of a certificate authority: `ca.pem` and `ca.key`, made once by `hostmesh ca init`, or those of the
 * root that has replaced them (ca-state.ts says which).
 *
 * Belongs on one guarded machine, never on a host of the mesh: who reads `ca.key` can be any service.
 * The trust domain is kept in the certificate itself, as its URI, so that the two cannot disagree.
 */
import { existsSync, mkdirSync } from 'node:fs'
import { basename, join } from 'node:path'
import { writeFileAtomically } from '../controlplane/identity/atomic-file.ts'
import { readKeyFile } from '../controlplane/identity/host-directory.ts'
import {
  isTrustDomain,
  MAX_PEM_BYTES,
  parseCertificates,
  parsePrivateKey,
} from '../controlplane/identity/x509.ts'
import { errorCode, MeshError } from '../lib/errors.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import { singleUriSan } from '../lib/uri-san.ts'
import { readState, stateFile } from './ca-state.ts'
import { type Authority, issueRoot, ROOT_LIFETIME_MS } from './issue-certificate.ts'

/** A CA that is ready to sign. */
export interface StoredAuthority extends Authority {
  readonly certificatePem: string
  readonly trustDomain: string
}

const SCHEME = 'spiffe://'

/** The two files of a root; of the one that signs unless it is named. */
export function authorityFiles(
  directory: string,
  name: string = activeName(directory),
): {
  readonly certificate: string
  readonly privateKey: string
} {
  return {
    certificate: join(directory, `${name}.pem`),
    privateKey: join(directory, `${name}.key`),
  }
}

const FIRST_ROOT = 'ca'

function activeName(directory: string): string {
  const state = readState(directory)
  return state?.roots.find(({ id }) => id === state.activeRoot)?.name ?? FIRST_ROOT
}

/** Whether a directory is that of a CA. */
export function holdsAuthority(directory: string): boolean {
  return (
    existsSync(authorityFiles(directory, FIRST_ROOT).privateKey) || existsSync(stateFile(directory))
  )
}

/**
 * Makes a CA in `directory`, which is created if need be. Never overwrites one.
 * @throws MeshError HM_CA_EXISTS, HM_CA_NAME_INVALID, HM_CA_UNWRITABLE
 */
export function createAuthority(directory: string, trustDomain: string, nowMs: number): void {
  if (!isTrustDomain(trustDomain))
    throw new MeshError(
      'HM_CA_NAME_INVALID',
      `Cannot use ${JSON.stringify(trustDomain.slice(0, 256))} as trust domain: it is not a lower-case DNS name`,
      {
        hint: 'Use a name such as mesh.example.com, without scheme and path, at most 128 characters',
      },
    )
  if (existsSync(authorityFiles(directory, FIRST_ROOT).certificate) || holdsAuthority(directory))
    throw alreadyThere(directory)
  try {
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    writeRoot(directory, FIRST_ROOT, trustDomain, nowMs)
  } catch (thrown) {
    if (errorCode(thrown) === 'EEXIST' && holdsAuthority(directory)) throw alreadyThere(directory)
    throw new MeshError('HM_CA_UNWRITABLE', `Cannot make a CA in ${directory}`, { cause: thrown })
  }
}

/** Makes a root and its files; existing ones are left alone. @throws what node:fs throws */
export function writeRoot(
  directory: string,
  name: string,
  trustDomain: string,
  nowMs: number,
): void {
  const files = authorityFiles(directory, name)
  const root = issueRoot(trustDomain, { nowMs, lifetimeMs: ROOT_LIFETIME_MS })
  writeFileAtomically(files.privateKey, root.privateKeyPem, { mode: 0o600, existing: 'fail' })
  writeFileAtomically(files.certificate, root.certificatePem, { mode: 0o644, existing: 'fail' })
}

/**
 * Reads a root of the CA in `directory`, the one that signs unless it is named, and checks that its key and
 * certificate belong together. Whether it has expired is for who uses it.
 * @throws MeshError HM_FILE_UNREADABLE, HM_CA_UNREADABLE, HM_CERT_UNREADABLE, HM_CERT_KEY_UNREADABLE,
 * HM_CERT_KEY_EXPOSED, HM_CERT_KEY_MISMATCH
 */
export function readAuthority(
  directory: string,
  name: string = activeName(directory),
): StoredAuthority {
  const files = authorityFiles(directory, name)
  const certificatePem = readCertificate(files.certificate, directory)
  const [certificate, ...more] = parseCertificates(certificatePem, files.certificate)
  const uri = certificate === undefined ? undefined : singleUriSan(certificate.raw)
  const trustDomain = uri?.startsWith(SCHEME) ? uri.slice(SCHEME.length) : ''
  if (certificate?.ca !== true || more.length > 0 || !isTrustDomain(trustDomain))
    throw new MeshError(
      'HM_CA_UNREADABLE',
      `Cannot use ${files.certificate} as a CA: it must be one CA certificate that names spiffe://<trust domain>`,
      { hint: 'Make one: hostmesh ca init --directory DIR --trust-domain NAME' },
    )
  const privateKey = parsePrivateKey(readKeyFile(files.privateKey), `the CA in ${directory}`)
  if (!certificate.checkPrivateKey(privateKey))
    throw new MeshError(
      'HM_CERT_KEY_MISMATCH',
      `Cannot use the CA in ${directory}: ${name}.key does not belong to ${name}.pem`,
      { hint: 'Restore both files from the same backup' },
    )
  if (privateKey.asymmetricKeyType !== 'ec')
    throw new MeshError(
      'HM_CA_UNREADABLE',
      `Cannot sign with ${files.privateKey}: it is not an EC key`,
    )
  return { certificate, certificatePem, privateKey, trustDomain }
}

function readCertificate(path: string, directory: string): string {
  try {
    return readTextFile(path, MAX_PEM_BYTES).text
  } catch (thrown) {
    if (!(thrown instanceof Error) || errorCode(thrown.cause) !== 'ENOENT') throw thrown
    throw new MeshError(
      'HM_CA_UNREADABLE',
      `Cannot find a CA in ${directory}: there is no ${basename(path)}`,
      {
        hint: 'Make one: hostmesh ca init --directory DIR --trust-domain NAME',
      },
    )
  }
}

function alreadyThere(directory: string): MeshError {
  return new MeshError('HM_CA_EXISTS', `Cannot make a CA in ${directory}: it holds one already`, {
    hint: 'Choose another directory; every certificate issued so far depends on the CA that is there',
  })
}
