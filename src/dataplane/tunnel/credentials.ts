/**
 * The certificates of this host's services as TLS contexts, replaced completely when a new leaf or new roots arrive.
 * Handshakes use the current ones; open connections are verified again (trust.ts).
 *
 * A leaf that the current roots no longer accept, or that has expired, is not used: no certificate is better than one
 * that is no longer true.
 */
import { constants, type X509Certificate } from 'node:crypto'
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls'
import type { MeshError } from '../../lib/errors.ts'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import {
  type CertificatePair,
  clockText,
  intermediatesIn,
  type Proof,
  proofOf,
  Trust,
} from './trust.ts'

/** TLS 1.3 first, beginning with the cheapest suite; below it, for Connect peers, only ECDHE with AEAD. */
const CIPHERS = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_AES_256_GCM_SHA384',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-ECDSA-AES128-GCM-SHA256',
  'ECDHE-ECDSA-AES256-GCM-SHA384',
  'ECDHE-ECDSA-CHACHA20-POLY1305',
  'ECDHE-RSA-AES128-GCM-SHA256',
  'ECDHE-RSA-AES256-GCM-SHA384',
].join(':')

/**
 * No tickets: a resumed session would skip the check of the peer's certificate. No renegotiation: it has no use here
 * and has enabled attacks more than once.
 */
const SECURE_OPTIONS = constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION

/** Intermediates kept; a CA has one or two at a time. */
const MAX_INTERMEDIATES = 64

/** A service's leaf with the roots that were current. */
export interface Credential {
  readonly leaf: Leaf
  /** The leaf, for later verification. */
  readonly proof: Proof
  readonly trustDomain: string
  /** The trust when the context was made. */
  readonly trusted: Trust
  readonly context: SecureContext
  /** The same for `setSecureContext`, which does not accept an existing context. */
  readonly secureContextOptions: SecureContextOptions
}

/** The identities that this host can prove, and the roots that it trusts. */
export class Credentials {
  private readonly leaves = new Map<string, Leaf>()
  private readonly contexts = new Map<string, Credential>()
  /** Received with our own leaves; peers of the same CA have the same. */
  private readonly intermediates = new Map<string, X509Certificate>()
  private readonly rejectionReasons = new Map<string, MeshError>()
  private bundle: TrustBundle | undefined
  private trust: Trust | undefined
  private readonly minVersion: 'TLSv1.2' | 'TLSv1.3'

  /** @param minVersion lowest TLS version accepted from peers that are not hostmesh. */
  constructor(minVersion: 'TLSv1.2' | 'TLSv1.3') {
    this.minVersion = minVersion
  }

  /** The current trust domain; undefined before the first roots. */
  get trustDomain(): string | undefined {
    return this.bundle?.trustDomain
  }

  /** Stores a new leaf; used from the next handshake on. */
  setLeaf(leaf: Leaf): void {
    if (this.intermediates.size > MAX_INTERMEDIATES) this.intermediates.clear()
    for (const certificate of intermediatesIn(leaf.certificatePem))
      this.intermediates.set(certificate.fingerprint256, certificate)
    this.leaves.set(leaf.service, leaf)
    this.contexts.delete(leaf.service)
    this.rejectionReasons.delete(leaf.service)
  }

  /** Stores new roots; used from the next handshake on. */
  setBundle(bundle: TrustBundle): void {
    this.bundle = bundle
    this.trust = new Trust(bundle, this.intermediates, this.trust)
    this.contexts.clear()
    this.rejectionReasons.clear()
  }

  /** The current trust; a new object for each bundle. */
  get trusted(): Trust | undefined {
    return this.trust
  }

  /** Why a connection with these certificates must end; undefined when it may continue. `nowMs` is wall clock. */
  rejectionReason(certificates: CertificatePair, nowMs: number): MeshError | undefined {
    return this.trust?.rejectionReason(certificates, nowMs)
  }

  /**
   * Verifies a connection whose handshake has just succeeded. `verifiedBy` is the value of {@link trusted} when it
   * began: revocation is always checked, chains only when the roots have changed since.
   */
  handshakeRejectionReason(
    certificates: CertificatePair,
    verifiedBy: Trust | undefined,
  ): MeshError | undefined {
    return this.trust?.rejectionReason(certificates, Date.now(), verifiedBy)
  }

  /** Whether the service has no other leaf than the one with this serial number. */
  isCurrent(service: string, serialNumber: string): boolean {
    const leaf = this.leaves.get(service)
    return leaf === undefined || leaf.serialNumber === serialNumber
  }

  /** The credential of a service of this host; undefined while it has no valid one. */
  of(service: string): Credential | undefined {
    const ready = this.contexts.get(service) ?? this.build(service)
    return ready === undefined || Date.now() >= ready.leaf.notAfterMs ? undefined : ready
  }

  /** Whether the service has never had a leaf, or there are no roots to verify it with. */
  isAwaited(service: string): boolean {
    return this.bundle === undefined || !this.leaves.has(service)
  }

  /** Why {@link of} returns undefined, as the end of a sentence about the service. */
  unavailableReason(service: string): string {
    const leaf = this.leaves.get(service)
    if (leaf === undefined) return 'it has no certificate yet'
    if (this.bundle === undefined) return 'there are no roots yet'
    const reason = this.rejectionReasons.get(service)
    if (reason !== undefined) return reason.message
    return `its certificate ended at ${clockText(leaf.notAfterMs)}, and the clock of this host says ${clockText(Date.now())}`
  }

  private build(service: string): Credential | undefined {
    const leaf = this.leaves.get(service)
    const { bundle, trust } = this
    if (leaf === undefined || bundle === undefined || trust === undefined) return undefined
    if (this.rejectionReasons.has(service)) return undefined
    const proof = proofOf(leaf)
    const reason = trust.proofRejectionReason(proof, Date.now())
    if (reason !== undefined) {
      this.rejectionReasons.set(service, reason)
      return undefined
    }
    const secureContextOptions: SecureContextOptions = {
      cert: leaf.certificatePem,
      key: leaf.privateKeyPem,
      ca: [...bundle.rootsPem],
      ...this.protocolOptions,
    }
    const credential: Credential = {
      leaf,
      proof,
      trustDomain: bundle.trustDomain,
      trusted: trust,
      context: createSecureContext(secureContextOptions),
      secureContextOptions,
    }
    this.contexts.set(service, credential)
    return credential
  }

  /** TLS settings of the tunnel port: a context selected by server name supplies the certificate, but not these. */
  get protocolOptions(): SecureContextOptions {
    return {
      minVersion: this.minVersion,
      maxVersion: 'TLSv1.3',
      ciphers: CIPHERS,
      honorCipherOrder: true,
      secureOptions: SECURE_OPTIONS,
    }
  }

  /** Names of the services that have a valid credential now. */
  ready(): string[] {
    return [...this.leaves.keys()].filter((service) => this.of(service) !== undefined)
  }
}
