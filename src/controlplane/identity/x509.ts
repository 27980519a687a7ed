/**
 * Reads and validates certificates: the leaf by which a service proves its identity, and the roots that are trusted.
 *
 * Everything that a peer would reject is rejected here first, with a message that gives the reason, so that a bad
 * certificate never replaces a good one. OpenSSL (node:crypto) parses and verifies signatures; the identity is read
 * from the DER bytes. Path length and name constraints are left to the handshake. No message contains key material.
 */
import { createPrivateKey, type KeyObject, X509Certificate } from 'node:crypto'
import { leadsToRoot } from '../../lib/certificate-path.ts'
import { MeshError } from '../../lib/errors.ts'
import { singleUriSan } from '../../lib/uri-san.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import { parseSpiffeId } from '../../model/spiffe-id.ts'

/** A certificate as received, not yet trusted. */
export interface LeafCandidate {
  readonly service: string
  /** Leaf first, then intermediates. */
  readonly certificatePem: string
  /** PKCS#8 or SEC1, not encrypted. */
  readonly privateKeyPem: string
  /** The datacenter of the service. Default: any. */
  readonly datacenter?: string | undefined
}

/** Most certificates in one PEM text. */
const MAX_CERTIFICATES = 32

/** Longest PEM text of certificates. */
export const MAX_PEM_BYTES = 262_144

const CLIENT_AUTH = '1.3.6.1.5.5.7.3.2'
const SERVER_AUTH = '1.3.6.1.5.5.7.3.1'

const CERTIFICATE = /-----BEGIN CERTIFICATE-----[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----/g

/**
 * Validates a candidate as a leaf that peers of its mesh accept at `nowMs` (wall clock).
 * @throws MeshError HM_CERT_UNREADABLE, HM_CERT_KEY_UNREADABLE, HM_CERT_KEY_MISMATCH, HM_CERT_IDENTITY,
 * HM_CERT_PURPOSE, HM_CERT_NOT_YET_VALID, HM_CERT_EXPIRED, HM_CERT_REVOKED, HM_CERT_UNTRUSTED
 */
export function readLeaf(candidate: LeafCandidate, bundle: TrustBundle, nowMs: number): Leaf {
  const what = `the certificate of ${candidate.service}`
  const [certificate, ...intermediates] = parseCertificates(candidate.certificatePem, what)
  if (certificate === undefined) throw unreadable(what, 'it holds no CERTIFICATE block')
  const spiffeId = requireIdentity(certificate, candidate, bundle.trustDomain)
  requirePurpose(certificate, what)
  if (!certificate.checkPrivateKey(parsePrivateKey(candidate.privateKeyPem, candidate.service)))
    throw new MeshError(
      'HM_CERT_KEY_MISMATCH',
      `Cannot use ${what}: the private key beside it belongs to another certificate`,
      { hint: 'Issue the certificate again; certificate and key are made together' },
    )
  requireTime(certificate, what, nowMs)
  if (bundle.revokedSerials.includes(certificate.serialNumber))
    throw new MeshError(
      'HM_CERT_REVOKED',
      `Cannot use ${what}: its CA has revoked serial ${certificate.serialNumber}`,
      { hint: 'Enroll or issue it again; until then nothing is sent or taken as this service' },
    )
  requireChain(certificate, intermediates, { what, bundle, nowMs })
  return {
    service: candidate.service,
    certificatePem: candidate.certificatePem,
    privateKeyPem: candidate.privateKeyPem,
    spiffeId,
    serialNumber: certificate.serialNumber,
    notBeforeMs: certificate.validFromDate.getTime(),
    notAfterMs: certificate.validToDate.getTime(),
  }
}

/**
 * The roots in `pem` as a trust bundle, without duplicates. Validity times are checked with the chains that use a root:
 * an old root may stay in a list after its use.
 * @throws MeshError HM_CERT_UNREADABLE, HM_CERT_ROOT_INVALID, HM_CERT_TRUST_DOMAIN
 */
export function readRoots(pem: string, trustDomain: string): TrustBundle {
  if (!isTrustDomain(trustDomain))
    throw new MeshError(
      'HM_CERT_TRUST_DOMAIN',
      `Cannot use ${JSON.stringify(trustDomain.slice(0, 256))} as trust domain: it must be a lower-case DNS name of at most ${MAX_TRUST_DOMAIN} characters`,
    )
  const roots = parseCertificates(pem, 'the roots')
  if (roots.length === 0) throw unreadable('the roots', 'there is no CERTIFICATE block')
  for (const root of roots)
    if (!root.ca)
      throw new MeshError(
        'HM_CERT_ROOT_INVALID',
        `Cannot trust ${nameOf(root)} as a root: it is not a CA certificate`,
      )
  return {
    trustDomain,
    rootsPem: [...new Set(roots.map((root) => root.toString()))],
    revokedSerials: [],
  }
}

const MAX_TRUST_DOMAIN = 128

/** Whether a string can be a trust domain: it must be valid in a SPIFFE ID and in a TLS server name. */
export function isTrustDomain(text: string): boolean {
  return (
    text.length <= MAX_TRUST_DOMAIN &&
    /^[a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*$/.test(text)
  )
}

/**
 * All certificates in a PEM text, in order.
 * @throws MeshError HM_CERT_UNREADABLE when one is damaged, or there are too many
 */
export function parseCertificates(pem: string, what: string): X509Certificate[] {
  if (pem.length > MAX_PEM_BYTES)
    throw unreadable(what, `it is longer than ${MAX_PEM_BYTES} characters`)
  const blocks = pem.match(CERTIFICATE) ?? []
  if (blocks.length !== pem.split('-----BEGIN CERTIFICATE-----').length - 1)
    throw unreadable(what, 'a CERTIFICATE block is not complete')
  if (blocks.length > MAX_CERTIFICATES)
    throw unreadable(
      what,
      `it holds ${blocks.length} certificates; the limit is ${MAX_CERTIFICATES}`,
    )
  return blocks.map((block, index) => {
    try {
      return new X509Certificate(block)
    } catch (thrown) {
      throw unreadable(what, `CERTIFICATE block ${index + 1} is damaged`, thrown)
    }
  })
}

/**
 * A private key that is not encrypted. `owner` is used in the message.
 * @throws MeshError HM_CERT_KEY_UNREADABLE
 */
export function parsePrivateKey(pem: string, owner: string): KeyObject {
  try {
    return createPrivateKey(pem)
  } catch {
    // The cause is omitted: no message contains anything about a key.
    throw new MeshError(
      'HM_CERT_KEY_UNREADABLE',
      `Cannot read the private key of ${owner}: it is not an unencrypted key in PEM form`,
      {
        hint: 'Give a PKCS#8 ("BEGIN PRIVATE KEY") or SEC1 ("BEGIN EC PRIVATE KEY") key without passphrase',
      },
    )
  }
}

function requireIdentity(
  certificate: X509Certificate,
  candidate: LeafCandidate,
  trustDomain: string,
): string {
  const { service, datacenter } = candidate
  const uri = singleUriSan(certificate.raw)
  const identity = uri === undefined ? undefined : parseSpiffeId(uri)
  if (
    uri !== undefined &&
    identity?.service === service &&
    identity.trustDomain === trustDomain &&
    (datacenter === undefined || identity.datacenter === datacenter)
  )
    return uri
  const expected = `spiffe://${trustDomain}/ns/default/dc/${datacenter ?? '<datacenter>'}/svc/${service}`
  const found = uri === undefined ? 'not exactly one URI' : JSON.stringify(uri.slice(0, 256))
  throw new MeshError(
    'HM_CERT_IDENTITY',
    `Cannot use the certificate of ${service}: it must name ${expected} and names ${found}`,
    { hint: 'Issue a certificate for this service, datacenter and trust domain' },
  )
}

function requirePurpose(certificate: X509Certificate, what: string): void {
  // Node names the extended key usage `keyUsage`; undefined means that any use is allowed.
  const uses: readonly string[] | undefined = certificate.keyUsage
  const lacks =
    uses !== undefined && !(uses.includes(CLIENT_AUTH) && uses.includes(SERVER_AUTH))
      ? 'its extended key usage lacks clientAuth or serverAuth'
      : undefined
  const problem = certificate.ca ? 'it is a CA certificate' : lacks
  if (problem !== undefined)
    throw new MeshError('HM_CERT_PURPOSE', `Cannot use ${what}: ${problem}`, {
      hint: 'Issue a certificate for a service, as client and as server',
    })
}

function requireTime(certificate: X509Certificate, what: string, nowMs: number): void {
  const problem = outsideValidity(certificate, what, nowMs)
  if (problem !== undefined) throw problem
}

/** Why the certificate is not valid at `nowMs`; undefined when it is. Both times are in the message. */
function outsideValidity(
  certificate: X509Certificate,
  what: string,
  nowMs: number,
): MeshError | undefined {
  const from = certificate.validFromDate.getTime()
  const to = certificate.validToDate.getTime()
  if (nowMs < from)
    return new MeshError(
      'HM_CERT_NOT_YET_VALID',
      `Cannot use ${what}: it is valid from ${iso(from)}, and the clock of this host says ${iso(nowMs)}`,
      { hint: 'Correct the clock of this host, or of the host that issued the certificate' },
    )
  if (nowMs >= to)
    return new MeshError(
      'HM_CERT_EXPIRED',
      `Cannot use ${what}: it expired at ${iso(to)}, and the clock of this host says ${iso(nowMs)}`,
      { hint: 'Issue it again, or correct the clock of this host' },
    )
  return undefined
}

interface ChainCheck {
  readonly what: string
  readonly bundle: TrustBundle
  readonly nowMs: number
}

function requireChain(
  leaf: X509Certificate,
  intermediates: readonly X509Certificate[],
  check: ChainCheck,
): void {
  const { what, bundle, nowMs } = check
  const roots = bundle.rootsPem.map((pem) => new X509Certificate(pem))
  let expired: MeshError | undefined
  const isSound = leadsToRoot({ leaf, intermediates, roots }, (issuer) => {
    const problem = outsideValidity(issuer, `${what} with its issuer ${nameOf(issuer)}`, nowMs)
    expired ??= problem
    return problem === undefined
  })
  if (isSound) return
  if (expired !== undefined) throw expired
  throw new MeshError(
    'HM_CERT_UNTRUSTED',
    `Cannot use ${what}: none of the ${roots.length} roots of ${bundle.trustDomain} stands behind it (issued by ${oneLine(leaf.issuer)})`,
    { hint: 'Add the root of its CA to the roots, or issue it from a CA that is among them' },
  )
}

function nameOf(certificate: X509Certificate): string {
  return oneLine(certificate.subject)
}

/** A distinguished name; Node writes each part on its own line, and returns undefined for an empty one. */
function oneLine(name: string | undefined): string {
  return JSON.stringify((name ?? '').replaceAll('\n', ', ').slice(0, 256))
}

function iso(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}

function unreadable(what: string, reason: string, cause?: unknown): MeshError {
  return new MeshError('HM_CERT_UNREADABLE', `Cannot read ${what}: ${reason}`, { cause })
}
