/**
 * Checks whether a certificate leads to a root: OpenSSL verifies signatures and names, with the issuers that
 * are available. For certificates that are verified outside of a handshake, before one or long after it.
 */
import type { X509Certificate } from 'node:crypto'

/** The certificates from which a path is built. */
export interface PathParts {
  readonly leaf: X509Certificate
  /** In any order; may include unrelated ones. */
  readonly intermediates: readonly X509Certificate[]
  readonly roots: readonly X509Certificate[]
}

/**
 * Whether a path of issuers, each of which `accepts` approves, leads from the leaf to one of the roots.
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
