/**
 * Join tokens, which an operator carries to a new host once (docs/ca-protocol.md, "Enrolling").
 *
 * A token has the address of the CA, the fingerprint of its root, and the secret with which a new host enrols. Never
 * log it; error messages here quote no part of it.
 */
import { z } from 'zod'
import { MeshError } from '../lib/errors.ts'

/** The content of a token. */
export interface JoinToken {
  /** `host:port` of the CA. */
  readonly address: string
  /** SHA-256 of a root of the CA, DER, in lower-case hex. */
  readonly fingerprint: string
  readonly id: string
  readonly secret: string
  /** The host that the token is for. */
  readonly host: string
}

const PREFIX = 'hm1.'

/** `host:port`; an IPv6 address stands in brackets. */
export const CA_ADDRESS = /^(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.-]{1,253})):([0-9]{1,5})$/

/** A valid host name: one that Consul accepts as a node name. */
export const HOST_NAME = /^[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?$/

const content = z.strictObject({
  a: z.string().regex(CA_ADDRESS),
  f: z.string().regex(/^[0-9a-f]{64}$/),
  i: z.string().regex(/^[0-9a-f]{16}$/),
  s: z.string().regex(/^[A-Za-z0-9_-]{43}$/),
  h: z.string().regex(HOST_NAME),
})

/** The token as one word of text. */
export function formatJoinToken(token: JoinToken): string {
  const { address: a, fingerprint: f, id: i, secret: s, host: h } = token
  return `${PREFIX}${Buffer.from(JSON.stringify({ a, f, i, s, h })).toString('base64url')}`
}

/**
 * Parses a token; ignores surrounding white space.
 * @throws MeshError HM_CA_TOKEN_INVALID
 */
export function parseJoinToken(text: string, origin: string): JoinToken {
  const word = text.trim()
  let parsed: unknown
  try {
    parsed = word.startsWith(PREFIX)
      ? JSON.parse(Buffer.from(word.slice(PREFIX.length), 'base64url').toString('utf8'))
      : undefined
  } catch {
    parsed = undefined
  }
  const { success, data } = content.safeParse(parsed)
  if (!success)
    throw new MeshError(
      'HM_CA_TOKEN_INVALID',
      `Cannot use ${origin} as a join token: it is damaged, or something else`,
      { hint: 'It is one word that begins with hm1.; make a new one with: hostmesh ca token' },
    )
  return { address: data.a, fingerprint: data.f, id: data.i, secret: data.s, host: data.h }
}
