/**
 * The one URI that a certificate names, read from its DER bytes (RFC 5280, X.690).
 *
 * The input is not trusted, and the text that TLS libraries print for a subject alternative name has
 * misled many programs (a NUL, a comma, a name of another type). So: own parser, limits on everything, no recursion,
 * and anything that is not exact DER has no URI. This verifies nothing: whether the certificate is genuine is
 * decided by the TLS library.
 */
import { type DerElement, derElements } from './der.ts'

/** Certificates of a mesh are below 2 KiB. */
const MAX_CERTIFICATE_BYTES = 65_536
const MAX_EXTENSIONS = 32
const MAX_SAN_BYTES = 8_192
const MAX_NAMES = 32
/** SPIFFE's own limit. */
const MAX_URI_BYTES = 2_048

const INTEGER = 0x02
const BOOLEAN = 0x01
const OCTET_STRING = 0x04
const OID = 0x06
const SEQUENCE = 0x30
const VERSION = 0xa0
const EXTENSIONS = 0xa3
const DNS_NAME = 0x82
const URI_NAME = 0x86

/** otherName, rfc822Name, dNSName, x400Address, directoryName, ediPartyName, URI, iPAddress, registeredID. */
const GENERAL_NAMES = new Set([0xa0, 0x81, DNS_NAME, 0xa3, 0xa4, 0xa5, URI_NAME, 0x87, 0x88])

/** id-ce-subjectAltName, 2.5.29.17. */
const SUBJECT_ALT_NAME = [0x55, 0x1d, 0x11]

/**
 * The URI of a certificate whose subject alternative name contains exactly one, as written there; undefined
 * for none, several, one with characters other than visible ASCII, and for any certificate that is malformed,
 * oversized or not version 3. Names of other types may be present. Never throws.
 */
export function singleUriSan(certificate: Uint8Array): string | undefined {
  if (certificate.length > MAX_CERTIFICATE_BYTES) return undefined
  const extensions = extensionsOf(certificate)
  if (extensions === undefined || extensions.length > MAX_EXTENSIONS) return undefined
  let names: Uint8Array | undefined
  for (const extension of extensions) {
    const value = subjectAltName(extension)
    if (value === undefined) return undefined
    if (value === 'other') continue
    if (names !== undefined) return undefined
    names = value
  }
  return names === undefined || names.length > MAX_SAN_BYTES ? undefined : onlyUri(names)
}

/** Certificate -> TBSCertificate -> extensions. */
function extensionsOf(certificate: Uint8Array): DerElement[] | undefined {
  const [whole] = derElements(certificate, 1) ?? []
  if (whole?.tag !== SEQUENCE) return undefined
  const parts = derElements(whole.content, 3)
  const tbs = parts?.[0]
  if (parts?.length !== 3 || tbs?.tag !== SEQUENCE) return undefined
  // version, serial, algorithm, issuer, validity, subject, key, two unique ids, extensions
  const fields = derElements(tbs.content, 10)
  const version = fields?.[0]
  const last = fields?.at(-1)
  if (version?.tag !== VERSION || last?.tag !== EXTENSIONS) return undefined
  const [number] = derElements(version.content, 1) ?? []
  if (number?.tag !== INTEGER || !isEqual(number.content, [2])) return undefined
  const [list] = derElements(last.content, 1) ?? []
  return list?.tag === SEQUENCE ? derElements(list.content, MAX_EXTENSIONS) : undefined
}

/** The value of a subjectAltName extension, 'other' for another extension, undefined for a malformed one. */
function subjectAltName(extension: DerElement): Uint8Array | 'other' | undefined {
  if (extension.tag !== SEQUENCE) return undefined
  const fields = derElements(extension.content, 3)
  const [oid, second] = fields ?? []
  const value = fields?.at(-1)
  if (oid?.tag !== OID || value?.tag !== OCTET_STRING) return undefined
  if (fields?.length === 3 && !(second?.tag === BOOLEAN && isEqual(second.content, [0xff])))
    return undefined
  return isEqual(oid.content, SUBJECT_ALT_NAME) ? value.content : 'other'
}

function onlyUri(names: Uint8Array): string | undefined {
  const [list] = derElements(names, 1) ?? []
  if (list?.tag !== SEQUENCE) return undefined
  let uri: string | undefined
  for (const name of derElements(list.content, MAX_NAMES) ?? []) {
    if (!GENERAL_NAMES.has(name.tag)) return undefined
    // An invalid DNS name was made to mislead a program that reads it later.
    if (name.tag === DNS_NAME && !/^[A-Za-z0-9*._-]+$/.test(ascii(name.content))) return undefined
    if (name.tag !== URI_NAME) continue
    if (uri !== undefined || name.content.length > MAX_URI_BYTES) return undefined
    uri = ascii(name.content)
    if (!/^[\x21-\x7e]+$/.test(uri)) return undefined
  }
  return uri
}

function isEqual(bytes: Uint8Array, expected: readonly number[]): boolean {
  return bytes.length === expected.length && expected.every((byte, index) => bytes[index] === byte)
}

/** One character for each byte, so that no decoder can drop or replace any. */
function ascii(bytes: Uint8Array): string {
  let text = ''
  for (const byte of bytes) text += String.fromCharCode(byte)
  return text
}
