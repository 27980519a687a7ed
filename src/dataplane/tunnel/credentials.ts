/**
 * The certificates of this host's services as TLS contexts, swapped whole when a new leaf or new roots
 * arrive. Handshakes take what is current; connections that are already open keep what they began with.
 */
import { constants } from 'node:crypto'
import { createSecureContext, type SecureContext, type SecureContextOptions } from 'node:tls'
import type { Leaf, TrustBundle } from '../../model/certificate.ts'

/** TLS 1.3 first with the suite that costs least; below, for Connect peers, ECDHE with AEAD only. */
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
 * No tickets: a resumed session would skip the check of the peer's certificate. No renegotiation: it
 * has no use here and was an attack more than once.
 */
const SECURE_OPTIONS = constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION

/** A service's leaf with the roots of its time. */
export interface Credential {
  readonly leaf: Leaf
  readonly trustDomain: string
  readonly context: SecureContext
  /** The same for `setSecureContext`, which takes no ready context. */
  readonly secureContextOptions: SecureContextOptions
}

/** What this host can prove, and whom it believes. */
export class Credentials {
  private readonly leaves = new Map<string, Leaf>()
  private readonly contexts = new Map<string, Credential>()
  private bundle: TrustBundle | undefined
  private readonly minVersion: 'TLSv1.2' | 'TLSv1.3'

  /** @param minVersion least version taken from peers that are not hostmesh. */
  constructor(minVersion: 'TLSv1.2' | 'TLSv1.3') {
    this.minVersion = minVersion
  }

  /** The current trust domain; undefined before the first roots. */
  get trustDomain(): string | undefined {
    return this.bundle?.trustDomain
  }

  /** Takes a new leaf; used from the next handshake on. */
  setLeaf(leaf: Leaf): void {
    this.leaves.set(leaf.service, leaf)
    this.contexts.delete(leaf.service)
  }

  /** Takes new roots; used from the next handshake on. */
  setBundle(bundle: TrustBundle): void {
    this.bundle = bundle
    this.contexts.clear()
  }

  /** What a service of this host proves itself with; undefined while leaf or roots are missing. */
  of(service: string): Credential | undefined {
    const ready = this.contexts.get(service)
    if (ready !== undefined) return ready
    const leaf = this.leaves.get(service)
    if (leaf === undefined || this.bundle === undefined) return undefined
    const secureContextOptions: SecureContextOptions = {
      cert: leaf.certificatePem,
      key: leaf.privateKeyPem,
      ca: [...this.bundle.rootsPem],
      ...this.protocolOptions,
    }
    const credential: Credential = {
      leaf,
      trustDomain: this.bundle.trustDomain,
      context: createSecureContext(secureContextOptions),
      secureContextOptions,
    }
    this.contexts.set(service, credential)
    return credential
  }

  /** What the tunnel port is set to: a context chosen by server name brings its certificate, not these. */
  get protocolOptions(): SecureContextOptions {
    return {
      minVersion: this.minVersion,
      maxVersion: 'TLSv1.3',
      ciphers: CIPHERS,
      honorCipherOrder: true,
      secureOptions: SECURE_OPTIONS,
    }
  }

  /** The names of the services that could prove themselves now. */
  ready(): string[] {
    return [...this.leaves.keys()].filter((service) => this.of(service) !== undefined)
  }
}
