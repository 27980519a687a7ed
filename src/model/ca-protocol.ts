/**
 * The messages between the CA and its hosts, as schemas that both ends validate with (docs/ca-protocol.md).
 */
import { z } from 'zod'
import { HOST_NAME } from './join-token.ts'

/** Longest body of a request. */
export const MAX_REQUEST_BYTES = 16_384

/** Longest answer that a host reads. */
export const MAX_ANSWER_BYTES = 16 * 1_024 * 1_024

/** Longest time until a long poll is answered, milliseconds. */
export const POLL_MS = 25_000

const pem = z.string().max(262_144)
const csr = z.string().max(8_192)

/** Bodies of the requests. */
export const enrollRequest = z.strictObject({
  id: z.string().max(64),
  secret: z.string().max(128),
  host: z.string().regex(HOST_NAME),
  csr,
})
export const renewRequest = z.strictObject({ csr })
export const signRequest = z.strictObject({ service: z.string().max(128), csr })

const fingerprint = z.string().regex(/^[0-9a-f]{64}$/)
const contentId = z.string().regex(/^[0-9a-f]{16}$/)

/** Everything that a host trusts, in one document. */
export const bundleAnswer = z.object({
  id: contentId,
  rootsId: contentId,
  trustDomain: z.string().max(128),
  roots: z.array(pem).min(1).max(8),
  activeRoot: fingerprint,
  revoked: z.array(z.string().regex(/^[0-9A-F]{1,40}$/)),
  renewWithinSeconds: z.number().min(0).max(86_400),
})

/** See {@link bundleAnswer}. */
export type CaBundle = z.output<typeof bundleAnswer>

export const rootsAnswer = z.object({ trustDomain: z.string(), roots: z.array(pem).min(1).max(8) })
export const certificateAnswer = z.object({ certificate: pem })
export const membershipAnswer = z.object({ certificate: pem, bundle: bundleAnswer })
/** The identity of the CA's server. */
export function caUri(trustDomain: string): string {
  return `spiffe://${trustDomain}/ca`
}

/** The identity of a host. It cannot be taken for a service's: those have four parts (spiffe-id.ts). */
export function hostUri(trustDomain: string, host: string): string {
  return `spiffe://${trustDomain}/host/${host}`
}

/** Identifies a root: SHA-256 of the DER, lower-case hex. */
export function fingerprintOf(certificate: { readonly fingerprint256: string }): string {
  return certificate.fingerprint256.replaceAll(':', '').toLowerCase()
}
