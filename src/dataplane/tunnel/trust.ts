/**
 * Judges connections that are open by what is believed now. A handshake verifies a certificate once; roots
 * and revocations change later, and a carrier may live for days.
 *
 * Nothing here runs for a byte or a stream: it is asked when a bundle arrives, and for a connection whose
 * handshake was under way just then.
 */
import { X509Certificate } from 'node:crypto'
import type { PeerCertificate } from 'node:tls'
import { leadsToRoot } from '../../lib/certificate-path.ts'
import { MeshError } from '../../lib/errors.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'

/** A certificate that one side of a connection proved itself with. */
export interface Proof {
  readonly spiffeId: string
  readonly serialNumber: string
  /** Wall clock, milliseconds since the epoch. */
  readonly notAfterMs: number
  /** The certificate, then what came along with it. Read when it is needed: that costs more than keeping it. */
  chain(): readonly X509Certificate[]
}

/** The two certificates that a connection rests on: it may live as long as both hold. */
export interface CertificatePair {
  readonly peer: Proof
  readonly own: Proof
}

/** Certificates beyond the first that are looked at; what a handshake took had fewer. */
const MAX_CHAIN = 16

/** Leaves known to lead to a root; beyond that they are verified again. */
const MAX_REMEMBERED = 10_000

/** The earlier end of the two certificates. */
export function endOf({ peer, own }: CertificatePair): number {
  return Math.min(peer.notAfterMs, own.notAfterMs)
}

/** Our own leaf as a proof. */
export function proofOf(leaf: Leaf): Proof {
  const { spiffeId, serialNumber, notAfterMs, certificatePem } = leaf
  return { spiffeId, serialNumber, notAfterMs, chain: () => certificatesIn(certificatePem) }
}

/** DER of a peer's certificate and what stands behind it, from the object that Node gives `checkServerIdentity`. */
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

/** What one trust bundle says of certificates. Made anew for each. */
export class Trust {
  readonly trustDomain: string
  /** What was believed before, when nothing of that was taken away: then what held still holds. */
  private widens: Trust | undefined
  private readonly known: ReadonlyMap<string, X509Certificate>
  private readonly roots: readonly X509Certificate[]
  private readonly revoked: ReadonlySet<string>
  private readonly sound = new Set<string>()

  /**
   * @param known intermediates that have been seen, by fingerprint: an accepted peer's own are not told.
   * @param before what was believed until now.
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
    // Only the last one is ever asked about: all that was ever believed would grow with every revocation.
    if (before !== undefined) before.widens = undefined
    this.revoked = new Set(bundle.revokedSerials)
  }

  /** Why a certificate that a handshake has just verified is not believed all the same. */
  revocationOf({ spiffeId, serialNumber }: Proof): MeshError | undefined {
    if (!this.revoked.has(serialNumber)) return undefined
    return new MeshError(
      'HM_TLS_REVOKED',
      `The certificate of ${spiffeId} with serial ${serialNumber} has been revoked`,
      { hint: 'Issue a new certificate to the host if it is still trusted' },
    )
  }

  /** Why a certificate is not believed any more; undefined when it is. `nowMs` is wall clock. */
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
   * Why a connection may not go on that held under the bundle before, or under `verifiedBy`; undefined when it
   * may. `nowMs` is wall clock.
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
    // Closed meanwhile: whoever owns it hears of that by itself.
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

/** A connection outlived one of its certificates: which, and by which clock. */
export function expiry(certificates: CertificatePair, nowMs: number): MeshError {
  const { peer, own } = certificates
  const first = peer.notAfterMs <= own.notAfterMs ? peer : own
  return new MeshError(
    'HM_TLS_EXPIRED',
    `The certificate of ${first.spiffeId} ended at ${clockText(first.notAfterMs)}, and the clock of this host says ${clockText(nowMs)}`,
  )
}

/** A wall-clock time as messages show it. */
export function clockText(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19)}Z`
}
