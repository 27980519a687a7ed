/**
 * Verifies open connections again by the current trust. A handshake verifies a certificate once; roots and revocations
 * change later, and a carrier may live for days.
 *
 * Not called per byte or per stream: only when a bundle arrives, and for a connection whose handshake was in progress
 * at that time.
 */
import { X509Certificate } from 'node:crypto'
import type { PeerCertificate } from 'node:tls'
import { leadsToRoot } from '../../lib/certificate-path.ts'
import { MeshError } from '../../lib/errors.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'

/** A certificate with which one side of a connection authenticated itself. */
export interface Proof {
  readonly spiffeId: string
  readonly serialNumber: string
  /** Wall clock, milliseconds since the epoch. */
  readonly notAfterMs: number
  /** The certificate, then those sent with it. Parsed at each call, which costs more than keeping the result. */
  chain(): readonly X509Certificate[]
}

/** The two certificates of a connection: it may live as long as both are valid. */
export interface CertificatePair {
  readonly peer: Proof
  readonly own: Proof
}

/** Certificates examined beyond the first; an accepted handshake had fewer. */
const MAX_CHAIN = 16

/** Leaves known to lead to a root; when there are more, they are verified again. */
const MAX_REMEMBERED = 10_000

/** The earlier expiry of the two certificates. */
export function endOf({ peer, own }: CertificatePair): number {
  return Math.min(peer.notAfterMs, own.notAfterMs)
}

/** Our own leaf as a proof. */
export function proofOf(leaf: Leaf): Proof {
  const { spiffeId, serialNumber, notAfterMs, certificatePem } = leaf
  return { spiffeId, serialNumber, notAfterMs, chain: () => certificatesIn(certificatePem) }
}

/** DER of a peer's certificate and its issuers, from the object that Node passes to `checkServerIdentity`. */
export function chainIn(certificate: PeerCertificate): readonly Uint8Array[] {
  const chain: Uint8Array[] = []
  let link: PeerCertificate | undefined = certificate
  while (link !== undefined && chain.length <= MAX_CHAIN) {
    chain.push(link.raw)
    const issuer: unknown = Reflect.get(link, 'issuerCertificate')
    // A root is its own issuer.
    link = issuer === link || !isCertificate(issuer) ? undefined : issuer
  }
  return chain
}

function isCertificate(value: unknown): value is PeerCertificate {
  return typeof value === 'object' && value !== null && 'raw' in value
}

function certificatesIn(pem: string): X509Certificate[] {
  return (pem.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? []).map(
    (block) => new X509Certificate(block),
  )
}

/** The intermediates in a PEM text that begins with a leaf. */
export function intermediatesIn(pem: string): readonly X509Certificate[] {
  return certificatesIn(pem).slice(1)
}

/** The trust that one trust bundle defines. A new object for each bundle. */
export class Trust {
  readonly trustDomain: string
  /** The previous trust, if the bundle removed none of its roots: then verified chains remain valid. */
  private widens: Trust | undefined
  private readonly known: ReadonlyMap<string, X509Certificate>
  private readonly roots: readonly X509Certificate[]
  private readonly revoked: ReadonlySet<string>
  private readonly sound = new Set<string>()

  /**
   * @param known intermediates seen so far, by fingerprint: Node does not report those of an accepted peer.
   * @param before the previous trust.
   */
  constructor(
    bundle: TrustBundle,
    known: ReadonlyMap<string, X509Certificate>,
    before: Trust | undefined,
  ) {
    this.trustDomain = bundle.trustDomain
    this.known = known
    this.roots = bundle.rootsPem.map((pem) => new X509Certificate(pem))
    const fingerprints = new Set(this.roots.map(({ fingerprint256 }) => fingerprint256))
    const keepsAll =
      before?.trustDomain === bundle.trustDomain &&
      before.roots.every(({ fingerprint256 }) => fingerprints.has(fingerprint256))
    this.widens = keepsAll ? before : undefined
    // Only the last one is ever used: a list of all previous ones would grow with each revocation.
    if (before !== undefined) before.widens = undefined
    this.revoked = new Set(bundle.revokedSerials)
  }

  /** Why a certificate that a handshake has just verified is rejected all the same; undefined unless it is revoked. */
  revocationOf({ spiffeId, serialNumber }: Proof): MeshError | undefined {
    if (!this.revoked.has(serialNumber)) return undefined
    return new MeshError(
      'HM_TLS_REVOKED',
      `The certificate of ${spiffeId} with serial ${serialNumber} has been revoked`,
      { hint: 'Issue a new certificate to the host if it is still trusted' },
    )
  }

  /** Why a certificate is no longer trusted; undefined when it is trusted. `nowMs` is wall clock. */
  proofRejectionReason(proof: Proof, nowMs: number): MeshError | undefined {
    const revocation = this.revocationOf(proof)
    if (revocation !== undefined) return revocation
    if (proof.spiffeId.startsWith(`spiffe://${this.trustDomain}/`) && this.isSound(proof, nowMs))
      return undefined
    return new MeshError(
      'HM_TLS_UNTRUSTED',
      `No root of ${this.trustDomain} stands behind the certificate of ${proof.spiffeId} any more`,
      { hint: 'hostmesh certs shows the roots; a root is removed after the last leaf under it' },
    )
  }

  /**
   * Why a connection that was valid under the previous bundle, or under `verifiedBy`, must end; undefined when it may
   * continue. `nowMs` is wall clock.
   */
  rejectionReason(
    certificates: CertificatePair,
    nowMs: number,
    verifiedBy: Trust | undefined = this.widens,
  ): MeshError | undefined {
    if (verifiedBy !== undefined && (verifiedBy === this || verifiedBy === this.widens))
      return this.revocationOf(certificates.peer) ?? this.revocationOf(certificates.own)
    return (
      this.proofRejectionReason(certificates.peer, nowMs) ??
      this.proofRejectionReason(certificates.own, nowMs)
    )
  }

  private isSound(proof: Proof, nowMs: number): boolean {
    const [leaf, ...intermediates] = proof.chain()
    // The connection has closed meanwhile; its owner is notified of that separately.
    if (leaf === undefined) return true
    if (this.sound.has(leaf.fingerprint256)) return true
    const isSound = leadsToRoot(
      { leaf, intermediates: [...intermediates, ...this.known.values()], roots: this.roots },
      (issuer) => issuer.validToDate.getTime() > nowMs,
    )
    if (!isSound) return false
    if (this.sound.size >= MAX_REMEMBERED) this.sound.clear()
    this.sound.add(leaf.fingerprint256)
    return true
  }
}

/** The error for a connection that outlived one of its certificates: names the certificate and the clock. */
export function expiry(certificates: CertificatePair, nowMs: number): MeshError {
  const { peer, own } = certificates
  const first = peer.notAfterMs <= own.notAfterMs ? peer : own
  return new MeshError(
    'HM_TLS_EXPIRED',
    `The certificate of ${first.spiffeId} ended at ${clockText(first.notAfterMs)}, and the clock of this host says ${clockText(nowMs)}`,
  )
}

/** Formats a wall-clock time for messages. */
export function clockText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}
