/**
 * The secret of a join token, on the side of the CA: made once, kept as a hash.
 */
import { createHash, randomBytes, timingSafeEqual } from 'node:crypto'

/** A fresh id, and a secret of 256 random bits. */
export function newTokenSecret(): { readonly id: string; readonly secret: string } {
  return { id: randomBytes(8).toString('hex'), secret: randomBytes(32).toString('base64url') }
}

/** What is kept of a secret. It has 256 random bits, so a plain hash cannot be searched. */
export function hashSecret(secret: string): string {
  return createHash('sha256').update(secret).digest('hex')
}

/** Whether `secret` is the one whose {@link hashSecret} is `hash`; takes equally long either way. */
export function isSecret(secret: string, hash: string): boolean {
  const given = Buffer.from(hashSecret(secret), 'hex')
  const kept = Buffer.from(hash, 'hex')
  return given.length === kept.length && timingSafeEqual(given, kept)
}
