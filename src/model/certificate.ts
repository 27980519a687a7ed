/**
 * Certificates as the daemon passes them around: PEM text and the facts read from it.
 */

/** A service's own certificate. Holds a private key: never logged, never in the admin API. */
export interface Leaf {
  readonly service: string
  /** The certificate and any intermediates, PEM, leaf first. */
  readonly certificatePem: string
  readonly privateKeyPem: string
  /** The one URI SAN. */
  readonly spiffeId: string
  readonly serialNumber: string
  readonly notBeforeMs: number
  readonly notAfterMs: number
}

/** All accepted roots, old and new, and their trust domain. */
export interface TrustBundle {
  readonly trustDomain: string
  /** PEM, one certificate each; never empty. */
  readonly rootsPem: readonly string[]
  /**
   * Serial numbers (hex, upper case, as `X509Certificate.serialNumber` writes them) of revoked leaves that have not
   * expired yet. Empty when the source does not support revocation.
   */
  readonly revokedSerials: readonly string[]
}
