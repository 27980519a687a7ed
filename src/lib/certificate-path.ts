/**
 * Whether a certificate leads to a root: signatures and names checked by OpenSSL, over whatever issuers lie
 * at hand. For certificates that are judged outside of a handshake, before one or long after it.
 */
import type { X509Certificate } from 'node:crypto'

/** What a path may be made of. */
export interface PathParts {
  readonly leaf: X509Certificate
  /** In any order, useless ones included. */
  readonly intermediates: readonly X509Certificate[]
  readonly roots: readonly X509Certificate[]
}

/**
 * Whether some path of issuers, each of which `accepts` takes, leads from the leaf to one of the roots.
 * Breadth first, each intermediate at most once: a loop among them ends the search, not the program.
 */
export function leadsToRoot(
  { leaf, intermediates, roots }: PathParts,
  accepts: (issuer: X509Certificate) => boolean,
): boolean {
  const waiting = new Set(intermediates)
  const reached = [leaf]
  for (const certificate of reached)
    for (const issuer of [...roots, ...waiting]) {
      if (!hasIssued(issuer, certificate)) continue
      waiting.delete(issuer)
      if (!accepts(issuer)) continue
      if (roots.includes(issuer)) return true
      reached.push(issuer)
    }
  return false
}

function hasIssued(issuer: X509Certificate, certificate: X509Certificate): boolean {
  return issuer.ca && certificate.checkIssued(issuer) && certificate.verify(issuer.publicKey)
}
