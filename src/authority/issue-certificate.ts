/**
 * Makes certificates: the root of a trust domain and the leaves of its services, in the profile of SPIFFE
 * X.509-SVIDs.
 *
 * node-forge only arranges the DER; keys, randomness, digests and signatures come from node:crypto. Loaded by
 * `hostmesh ca` and never by the daemon. Its only inputs are our own names and CA certificate, and public keys that
 * node:crypto has read and encoded again.
 *
 * A leaf has an empty subject and a critical subject alternative name (RFC 5280 4.1.2.6 requires that pair). Consul
 * also writes a common name, but that holds 64 characters where a service name may have 128, and a second place for
 * the identity would be compared by someone.
 */
import {
  createHash,
  generateKeyPairSync,
  type KeyObject,
  randomBytes,
  sign,
  type X509Certificate,
} from 'node:crypto'
import forge from 'node-forge'
import { MeshError } from '../lib/errors.ts'
import { formatServerName, formatSpiffeId, type ServiceIdentity } from '../model/spiffe-id.ts'

const { asn1 } = forge
type Asn1 = forge.asn1.Asn1

/**
 * The largest expected difference between clocks of a fleet: certificates are valid from this long before they are
 * made. {@link Lifetime.backdateMs} may be less, so that a short-lived one is still fresh for half of its life.
 */
export const BACKDATE_MS = 300_000

/** Ten years. */
export const ROOT_LIFETIME_MS = 3_653 * 86_400_000

/** As for Consul's leaves. */
export const LEAF_LIFETIME_MS = 72 * 3_600_000

/** A certificate and its private key (PKCS#8). */
export interface IssuedCertificate {
  readonly certificatePem: string
  readonly privateKeyPem: string
}

/** The signer. */
export interface Authority {
  readonly certificate: X509Certificate
  readonly privateKey: KeyObject
}

/** Start and length of the validity, milliseconds. */
export interface Lifetime {
  readonly nowMs: number
  readonly lifetimeMs: number
  /** How long before now the validity begins. Default: {@link BACKDATE_MS}. */
  readonly backdateMs?: number
}

/** The permitted use of a certificate. */
export type Purpose = 'client' | 'server' | 'both'

/** The content of a certificate made by {@link certify}. */
export interface CertifyRequest {
  readonly publicKey: KeyObject
  /** The only URI. */
  readonly uri: string
  readonly purpose: Purpose
  /** For messages: `a certificate for web`. */
  readonly what: string
}

/** One X.509 extension; `value` goes into its OCTET STRING. */
export interface Extension {
  readonly oid: string
  readonly critical: boolean
  readonly value: Asn1
}

/** The content of a certificate made by {@link signCertificate}. */
export interface CertificateTemplate {
  readonly subject: Asn1
  readonly issuer: Asn1
  readonly publicKey: KeyObject
  readonly notBeforeMs: number
  readonly notAfterMs: number
  readonly extensions: readonly Extension[]
}

/** A new P-256 key and a self-signed root for a trust domain. */
export function issueRoot(trustDomain: string, lifetime: Lifetime): IssuedCertificate {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const keyId = keyIdOf(publicKey)
  // The key's id makes the names of an old and a new root differ, so that no verifier confuses them.
  const name = distinguishedName(`hostmesh CA ${keyId.subarray(0, 4).toString('hex')}`)
  const certificatePem = signCertificate(
    {
      subject: name,
      issuer: name,
      publicKey,
      notBeforeMs: lifetime.nowMs - BACKDATE_MS,
      notAfterMs: lifetime.nowMs + lifetime.lifetimeMs,
      extensions: [
        basicConstraints(true),
        // keyCertSign and cRLSign
        { oid: '2.5.29.15', critical: true, value: bitString([0x06], 1) },
        uriSan(`spiffe://${trustDomain}`, false),
        subjectKeyId(keyId),
        authorityKeyId(keyId),
      ],
    },
    privateKey,
  )
  return { certificatePem, privateKeyPem: exportKey(privateKey) }
}

/**
 * A new P-256 key and a leaf for one service.
 * @throws MeshError HM_CA_LIFETIME_INVALID when the leaf would outlive its root, HM_CA_NAME_INVALID when
 * the TLS server name of the service would be too long to be sent
 */
export function issueLeaf(
  authority: Authority,
  identity: ServiceIdentity,
  lifetime: Lifetime,
): IssuedCertificate {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const certificatePem = certifyService(authority, identity, publicKey, lifetime)
  return { certificatePem, privateKeyPem: exportKey(privateKey) }
}

/**
 * A leaf for one service and an existing key; PEM.
 * @throws MeshError as {@link issueLeaf}
 */
export function certifyService(
  authority: Authority,
  identity: ServiceIdentity,
  publicKey: KeyObject,
  lifetime: Lifetime,
): string {
  const serverName = formatServerName(identity)
  if (serverName.length > MAX_SERVER_NAME)
    throw new MeshError(
      'HM_CA_NAME_INVALID',
      `Cannot issue a certificate for ${identity.service}: its server name ${serverName} is longer than ${MAX_SERVER_NAME} characters`,
      { hint: 'Shorten the name of the service or of the trust domain' },
    )
  const uri = formatSpiffeId(identity)
  const what = `a certificate for ${identity.service}`
  return certify(authority, { publicKey, uri, purpose: 'both', what }, lifetime)
}

/**
 * Rejects what is not a name of a Consul datacenter: it becomes a part of a SPIFFE ID.
 * @throws MeshError HM_CA_DATACENTER_INVALID
 */
export function requireDatacenter(datacenter: string): void {
  if (!/^[a-z0-9_-]{1,64}$/.test(datacenter))
    throw new MeshError(
      'HM_CA_DATACENTER_INVALID',
      `Cannot issue for the datacenter ${JSON.stringify(datacenter.slice(0, 256))}: it is not a Consul datacenter name`,
      {
        hint: 'Use a-z, 0-9, "_" and "-", at most 64 characters; the same as `datacenter` in the configuration',
      },
    )
}

/**
 * An end certificate for any URI; PEM.
 * @throws MeshError HM_CA_LIFETIME_INVALID when it would outlive its root
 */
export function certify(authority: Authority, request: CertifyRequest, lifetime: Lifetime): string {
  const { publicKey, uri, purpose, what } = request
  if (!(lifetime.lifetimeMs > 0))
    throw new MeshError(
      'HM_CA_LIFETIME_INVALID',
      `Cannot issue ${what} that lives ${lifetime.lifetimeMs} ms`,
    )
  const notAfterMs = lifetime.nowMs + lifetime.lifetimeMs
  const rootEnd = authority.certificate.validToDate
  if (notAfterMs > rootEnd.getTime())
    throw new MeshError(
      'HM_CA_LIFETIME_INVALID',
      `Cannot issue ${what} until ${new Date(notAfterMs).toISOString()}: the root ends at ${rootEnd.toISOString()}`,
      { hint: 'Ask for a shorter lifetime, or replace the root (docs/certificates.md)' },
    )
  const root = readIssuer(authority.certificate)
  return signCertificate(
    {
      subject: sequence(),
      issuer: root.subject,
      publicKey,
      notBeforeMs: lifetime.nowMs - (lifetime.backdateMs ?? BACKDATE_MS),
      notAfterMs,
      extensions: [
        basicConstraints(false),
        // digitalSignature only: TLS 1.3, and ECDHE before it, need the key for nothing else.
        { oid: '2.5.29.15', critical: true, value: bitString([0x80], 7) },
        extendedKeyUsage(...PURPOSES[purpose]),
        uriSan(uri, true),
        subjectKeyId(keyIdOf(publicKey)),
        authorityKeyId(root.keyId),
      ],
    },
    authority.privateKey,
  )
}

/** clientAuth, serverAuth. */
const PURPOSES: Readonly<Record<Purpose, readonly string[]>> = {
  client: ['1.3.6.1.5.5.7.3.2'],
  server: ['1.3.6.1.5.5.7.3.1'],
  both: ['1.3.6.1.5.5.7.3.2', '1.3.6.1.5.5.7.3.1'],
}

/** The longest server name that a TLS client can send. */
const MAX_SERVER_NAME = 255

/** Signs `template` with an EC key; PEM. Does not validate the template: that is the caller's responsibility. */
export function signCertificate(template: CertificateTemplate, issuerKey: KeyObject): string {
  const ecdsaWithSha256 = sequence(oid('1.2.840.10045.4.3.2'))
  const spki = template.publicKey.export({ type: 'spki', format: 'der' })
  const tbs = sequence(
    tagged(0, [integer(Buffer.from([2]))]),
    integer(serialNumber()),
    ecdsaWithSha256,
    template.issuer,
    sequence(time(template.notBeforeMs), time(template.notAfterMs)),
    template.subject,
    asn1.fromDer(spki.toString('latin1')),
    tagged(3, [sequence(...template.extensions.map(extension))]),
  )
  const signature = sign('sha256', encode(tbs), { key: issuerKey, dsaEncoding: 'der' })
  const der = encode(sequence(tbs, ecdsaWithSha256, bitString(signature, 0)))
  const lines = der.toString('base64').match(/.{1,64}/g) ?? []
  return `-----BEGIN CERTIFICATE-----\n${lines.join('\n')}\n-----END CERTIFICATE-----\n`
}

/** A name with one part, the common name; without one, an empty name. */
export function distinguishedName(commonName?: string): Asn1 {
  if (commonName === undefined) return sequence()
  const text = asn1.create(asn1.Class.UNIVERSAL, asn1.Type.UTF8, false, commonName)
  const part = sequence(oid('2.5.4.3'), text)
  return sequence(asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SET, true, [part]))
}

/** basicConstraints: a CA that may sign only leaves, or no CA. */
export function basicConstraints(isCa: boolean): Extension {
  const isTrue = asn1.create(asn1.Class.UNIVERSAL, asn1.Type.BOOLEAN, false, '\xff')
  const value = isCa ? sequence(isTrue, integer(Buffer.from([0]))) : sequence()
  return { oid: '2.5.29.19', critical: true, value }
}

/** subjectAltName with one URI. */
export function uriSan(uri: string, critical: boolean): Extension {
  const name = tagged(URI_NAME, uri)
  return { oid: '2.5.29.17', critical, value: sequence(name) }
}

/** extKeyUsage; clientAuth is 1.3.6.1.5.5.7.3.2, serverAuth ends in .1. */
export function extendedKeyUsage(...uses: string[]): Extension {
  return { oid: '2.5.29.37', critical: false, value: sequence(...uses.map(oid)) }
}

/** The tag of uniformResourceIdentifier in GeneralName. */
const URI_NAME = 6

function subjectKeyId(keyId: Buffer): Extension {
  return { oid: '2.5.29.14', critical: false, value: octetString(keyId) }
}

function authorityKeyId(keyId: Buffer | undefined): Extension {
  const parts = keyId === undefined ? [] : [tagged(0, keyId.toString('latin1'))]
  return { oid: '2.5.29.35', critical: false, value: sequence(...parts) }
}

/** The first 160 bits of the SHA-256 of the whole public key (RFC 7093); any unique value would do. */
function keyIdOf(publicKey: KeyObject): Buffer {
  const spki = publicKey.export({ type: 'spki', format: 'der' })
  return createHash('sha256').update(spki).digest().subarray(0, 20)
}

/** 127 bits, positive, always 16 bytes long. */
function serialNumber(): Buffer {
  const bytes = randomBytes(16)
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40
  return bytes
}

/** Name and key id of our own CA certificate, exactly as encoded there. */
function readIssuer(certificate: X509Certificate): { subject: Asn1; keyId: Buffer | undefined } {
  const [tbs] = children(asn1.fromDer(certificate.raw.toString('latin1')))
  const fields = tbs === undefined ? [] : children(tbs)
  const subject = fields[5]
  if (subject === undefined)
    throw new MeshError('HM_CA_UNREADABLE', 'Cannot read the CA certificate: it has no subject')
  const [extensions] = fields
    .filter((field) => encode(field)[0] === EXTENSIONS_TAG)
    .flatMap(children)
  const wanted = encode(oid('2.5.29.14'))
  const [found] = (extensions === undefined ? [] : children(extensions))
    .map(children)
    .filter(([id]) => id !== undefined && encode(id).equals(wanted))
  const value = found?.at(-1)?.value
  const inner = typeof value === 'string' ? asn1.fromDer(value).value : undefined
  return { subject, keyId: typeof inner === 'string' ? Buffer.from(inner, 'latin1') : undefined }
}

/** [3], constructed. */
const EXTENSIONS_TAG = 0xa3

function children(node: Asn1): Asn1[] {
  return typeof node.value === 'string' ? [] : node.value
}

function exportKey(key: KeyObject): string {
  return key.export({ type: 'pkcs8', format: 'pem' }).toString()
}

/** Whole seconds, the resolution of certificates; four-digit years from 2050 on (RFC 5280 4.1.2.5). */
function time(ms: number): Asn1 {
  const date = new Date(Math.floor(ms / 1_000) * 1_000)
  return date.getUTCFullYear() < 2050
    ? asn1.create(asn1.Class.UNIVERSAL, asn1.Type.UTCTIME, false, asn1.dateToUtcTime(date))
    : asn1.create(
        asn1.Class.UNIVERSAL,
        asn1.Type.GENERALIZEDTIME,
        false,
        asn1.dateToGeneralizedTime(date),
      )
}

function extension({ oid: id, critical, value }: Extension): Asn1 {
  const flag = asn1.create(asn1.Class.UNIVERSAL, asn1.Type.BOOLEAN, false, '\xff')
  const content = octetString(encode(value))
  return critical ? sequence(oid(id), flag, content) : sequence(oid(id), content)
}

function sequence(...parts: Asn1[]): Asn1 {
  return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.SEQUENCE, true, parts)
}

/** A context-specific element: a string makes it primitive, one character per byte. */
export function tagged(tag: number, content: string | Asn1[]): Asn1 {
  const isConstructed = typeof content !== 'string'
  // oxlint-disable-next-line typescript/no-unsafe-enum-assignment -- forge types context tags as universal ones
  return asn1.create(asn1.Class.CONTEXT_SPECIFIC, tag, isConstructed, content)
}

function oid(dotted: string): Asn1 {
  return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.OID, false, asn1.oidToDer(dotted).getBytes())
}

/** `bytes` must be positive and without leading zeros, or a single byte. */
function integer(bytes: Buffer): Asn1 {
  return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.INTEGER, false, bytes.toString('latin1'))
}

function octetString(bytes: Buffer): Asn1 {
  return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.OCTETSTRING, false, bytes.toString('latin1'))
}

function bitString(bytes: Uint8Array | readonly number[], unusedBits: number): Asn1 {
  const content = Buffer.from([unusedBits, ...bytes]).toString('latin1')
  return asn1.create(asn1.Class.UNIVERSAL, asn1.Type.BITSTRING, false, content)
}

function encode(node: Asn1): Buffer {
  return Buffer.from(asn1.toDer(node).getBytes(), 'latin1')
}
