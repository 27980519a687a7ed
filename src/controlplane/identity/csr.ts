/**
 * Certificate signing requests (PKCS#10, RFC 2986), made on the host and read by the CA. A request carries one public
 * key and the proof that the sender has the private key.
 *
 * Nothing else in a request is used: its subject and extensions are a wish of the host, and the CA decides the name. So
 * our requests have an empty subject, and only the key of any request is read. P-256 with ECDSA and SHA-256 only:
 * weaker keys are refused, stronger ones have no use.
 */
import { createPublicKey, generateKeyPairSync, type KeyObject, sign, verify } from 'node:crypto'
import { derElement, derElements } from '../../lib/der.ts'
import { describeError, MeshError } from '../../lib/errors.ts'

/** A request and the private key that stays on the host (PKCS#8). */
export interface SigningRequest {
  readonly csrPem: string
  readonly privateKeyPem: string
}

/** Longest request that is read; our own have 300 bytes. */
const MAX_CSR_BYTES = 8_192

const INTEGER = 0x02
const BIT_STRING = 0x03
const SEQUENCE = 0x30
const ATTRIBUTES = 0xa0

/** ecdsa-with-SHA256, 1.2.840.10045.4.3.2, with no parameters. */
const ECDSA_WITH_SHA256 = derElement(
  SEQUENCE,
  Uint8Array.from([0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]),
)

/** The first bytes of the SubjectPublicKeyInfo of every P-256 key in its usual encoding. */
const P256_HEADER = Buffer.from('3059301306072a8648ce3d020106082a8648ce3d03010703420004', 'hex')

/** Makes a new P-256 key and a request for it. */
export function makeSigningRequest(): SigningRequest {
  const { publicKey, privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const info = derElement(
    SEQUENCE,
    derElement(INTEGER, Uint8Array.from([0])),
    derElement(SEQUENCE),
    publicKey.export({ type: 'spki', format: 'der' }),
    derElement(ATTRIBUTES),
  )
  const signature = sign('sha256', info, { key: privateKey, dsaEncoding: 'der' })
  const request = derElement(
    SEQUENCE,
    info,
    ECDSA_WITH_SHA256,
    derElement(BIT_STRING, Uint8Array.from([0]), signature),
  )
  const lines =
    Buffer.from(request)
      .toString('base64')
      .match(/.{1,64}/g) ?? []
  return {
    csrPem: `-----BEGIN CERTIFICATE REQUEST-----\n${lines.join('\n')}\n-----END CERTIFICATE REQUEST-----\n`,
    privateKeyPem: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
  }
}

const PEM =
  /^\s*-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----([\sA-Za-z0-9+/=]+)-----END (?:NEW )?CERTIFICATE REQUEST-----\s*$/

/**
 * The public key of a request, after verifying that the sender has the private key.
 * @throws MeshError HM_CA_CSR_INVALID, HM_CA_KEY_REFUSED
 */
export function readSigningRequest(csrPem: string): KeyObject {
  if (csrPem.length > MAX_CSR_BYTES) throw invalid(`it is longer than ${MAX_CSR_BYTES} bytes`)
  const base64 = PEM.exec(csrPem)?.[1]
  if (base64 === undefined) throw invalid('it is not one PEM block CERTIFICATE REQUEST')
  const der = Buffer.from(base64, 'base64')
  const [outer, ...more] = derElements(der, 1) ?? []
  const parts = outer?.tag === SEQUENCE ? derElements(outer.content, 3) : undefined
  const [info, algorithm, signature] = parts ?? []
  // Version, subject, key, attributes.
  const fields = info?.tag === SEQUENCE ? derElements(info.content, 4) : undefined
  const spki = fields?.[2]
  if (
    more.length > 0 ||
    info === undefined ||
    algorithm === undefined ||
    signature?.tag !== BIT_STRING ||
    signature.content[0] !== 0 ||
    fields?.length !== 4 ||
    fields[0]?.tag !== INTEGER ||
    spki?.tag !== SEQUENCE
  )
    throw invalid('it is no PKCS#10 request in DER')
  const publicKey = readKey(spki.whole)
  if (!Buffer.from(ECDSA_WITH_SHA256).equals(algorithm.whole))
    throw invalid('it is not signed with ECDSA and SHA-256')
  if (!isSignedBy(publicKey, info.whole, signature.content.subarray(1)))
    throw invalid('its signature was not made by the key it asks a certificate for')
  return publicKey
}

/** Whether two keys are equal. */
export function isSameKey(left: KeyObject, right: KeyObject): boolean {
  return left.type === right.type && left.equals(right)
}

function readKey(spki: Uint8Array): KeyObject {
  let key: KeyObject
  try {
    key = createPublicKey({ key: Buffer.from(spki), type: 'spki', format: 'der' })
  } catch (thrown) {
    throw new MeshError(
      'HM_CA_KEY_REFUSED',
      `Cannot certify this key: it cannot be read (${describeError(thrown)})`,
    )
  }
  const curve = key.asymmetricKeyDetails?.namedCurve
  if (key.asymmetricKeyType !== 'ec' || curve !== 'prime256v1')
    throw new MeshError(
      'HM_CA_KEY_REFUSED',
      `Cannot certify a key of type ${key.asymmetricKeyType ?? 'unknown'}${curve === undefined ? '' : ` on ${curve}`}: it must be EC on P-256`,
      { hint: 'Make it with: openssl ecparam -name prime256v1 -genkey -noout' },
    )
  // An explicit curve or a compressed point encodes the same key in a form that peers may reject.
  if (
    !key.export({ type: 'spki', format: 'der' }).subarray(0, P256_HEADER.length).equals(P256_HEADER)
  )
    throw new MeshError(
      'HM_CA_KEY_REFUSED',
      'Cannot certify this key: it is not written as a named curve with an uncompressed point',
    )
  return key
}

function isSignedBy(key: KeyObject, text: Uint8Array, signature: Uint8Array): boolean {
  try {
    return verify('sha256', text, { key, dsaEncoding: 'der' }, signature)
  } catch {
    return false
  }
}

function invalid(reason: string): MeshError {
  return new MeshError('HM_CA_CSR_INVALID', `Cannot read the signing request: ${reason}`)
}
