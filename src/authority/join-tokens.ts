/**
 * Join tokens on the CA's side: made for one host, stored as a hash, used once (docs/ca-protocol.md, "Enrolling").
 */
import { createHash, type KeyObject, randomBytes, timingSafeEqual } from 'node:crypto'
import { MeshError } from '../lib/errors.ts'
import { CA_ADDRESS, HOST_NAME } from '../model/join-token.ts'
import { isServiceName } from '../model/spiffe-id.ts'
import type { CaDatabase } from './database.ts'
import { requireDatacenter } from './issue-certificate.ts'

/** The content of a token. */
export interface TokenRequest {
  readonly host: string
  readonly datacenter: string
  readonly services: readonly string[]
  readonly ttlMs: number
  /** `host:port`. Default: the server's own. */
  readonly address?: string | undefined
}

/** A token as stored. */
export interface KeptToken {
  readonly id: string
  readonly secretHash: string
  readonly host: string
  readonly datacenter: string
  /** Names, joined by spaces. */
  readonly services: string
  readonly expiresAtMs: number
  /** Hash of the key that it was used for. */
  readonly usedByKey: string | null
}

const MAX_TOKENS = 10_000
const MAX_TOKEN_TTL_MS = 30 * 86_400_000

/**
 * Stores a new token and returns its id, its secret of 256 random bits, and the address that it contains.
 * @throws MeshError HM_CA_NAME_INVALID, HM_CA_DATACENTER_INVALID, HM_CA_TOKEN_REQUEST_INVALID
 */
export function addToken(
  database: CaDatabase,
  request: TokenRequest,
  expiresAtMs: number,
): { readonly id: string; readonly secret: string; readonly address: string } {
  const { host, datacenter, services } = request
  const address = requireMeaning(request)
  if (database.count('SELECT count(*) FROM token') >= MAX_TOKENS)
    throw invalid(
      `Cannot have more than ${MAX_TOKENS} tokens`,
      'Wait until some expire; give shorter lifetimes',
    )
  const id = randomBytes(8).toString('hex')
  const secret = randomBytes(32).toString('base64url')
  const names = [...new Set(services)].join(' ')
  const values = [id, hashSecret(secret), host, datacenter, names, expiresAtMs]
  database.change((run) => run('INSERT INTO token VALUES (?, ?, ?, ?, ?, ?, NULL)', ...values))
  return { id, secret, address }
}

/** The token that a new host presents, or why it is refused. */
export function findToken(
  database: CaDatabase,
  shown: { readonly id: string; readonly secret: string; readonly host: string },
  nowMs: number,
): KeptToken | string {
  const token = database.row<KeptToken>('SELECT * FROM token WHERE id = ?', shown.id)
  // Also for an unknown id, so that the response time does not reveal which ids exist.
  const isRight = isSecret(shown.secret, token?.secretHash ?? hashSecret(''))
  if (token === undefined) return 'unknown token'
  if (!isRight) return 'wrong secret'
  if (token.expiresAtMs <= nowMs) return 'expired token'
  return token.host === shown.host ? token : `token of ${token.host}`
}

/** Validates the request; returns the address for the token. */
function requireMeaning({ host, datacenter, services, ttlMs, address }: TokenRequest): string {
  if (!HOST_NAME.test(host))
    throw new MeshError('HM_CA_NAME_INVALID', `${noToken(host)}: it is no host name`, {
      hint: 'Use A-Z, a-z, 0-9, "-", "." and "_", at most 128 characters; as node.name says',
    })
  requireDatacenter(datacenter)
  for (const service of services)
    if (!isServiceName(service))
      throw new MeshError('HM_CA_NAME_INVALID', `${noToken(service)}: it is not a service name`)
  if (address === undefined || !CA_ADDRESS.test(address))
    throw invalid(
      address === undefined
        ? 'Cannot make a token: nobody knows yet where this CA is reached'
        : `Cannot make a token with the address ${JSON.stringify(address.slice(0, 256))}`,
      'Give --address HOST:PORT, or start hostmesh ca serve with --advertise',
    )
  if (!(ttlMs > 0 && ttlMs <= MAX_TOKEN_TTL_MS))
    throw invalid('Cannot make a token that lives longer than 30 days')
  return address
}

function noToken(name: string): string {
  return `Cannot make a token for ${JSON.stringify(name.slice(0, 256))}`
}

function invalid(message: string, hint?: string): MeshError {
  return new MeshError('HM_CA_TOKEN_REQUEST_INVALID', message, hint === undefined ? {} : { hint })
}

/** The stored hash of the key that a token was used for. */
export function hashKey(key: KeyObject): string {
  return createHash('sha256')
    .update(key.export({ type: 'spki', format: 'der' }))
    .digest('hex')
}

/** A secret has 256 random bits, so a plain hash cannot be searched. */
function hashSecret(secret: string): string {
  return createHash('sha256').update(secret).digest('hex')
}

/** Compares in constant time. */
function isSecret(secret: string, hash: string): boolean {
  return timingSafeEqual(Buffer.from(hashSecret(secret), 'hex'), Buffer.from(hash, 'hex'))
}
