/**
 * The CA's bundle in use on this host: the trusted roots, the revoked certificates, and the root that signs now.
 */
import { X509Certificate } from 'node:crypto'
import type { Clock } from '../../lib/clock.ts'
import { MeshError } from '../../lib/errors.ts'
import type { Log } from '../../lib/log.ts'
import { type CaBundle, fingerprintOf } from '../../model/ca-protocol.ts'
import type { TrustBundle } from '../../model/certificate.ts'
import type { CaTrust } from './ca-client.ts'
import type { CertificateBoard } from './certificate-board.ts'
import type { CredentialStore, HeldCredential, StoredBundle } from './credential-store.ts'
import { type Renewal, renewalOf } from './renewal.ts'
import { readRoots } from './x509.ts'

/** What the bundle is built from. */
export interface TrustedBundleOptions {
  readonly board: CertificateBoard
  readonly store: CredentialStore
  readonly log: Log
  readonly clock: Clock
  /** Called when another bundle is in use: certificates may have to be renewed. */
  readonly onChange: () => void
}

/** The bundle in use, if there is one. */
export class TrustedBundle {
  readonly #options: TrustedBundleOptions
  #current: CaBundle | undefined
  /** The address of the CA that sent it, as stored on disk. */
  #server: string | undefined
  /** Wall clock of when the active root became known. */
  #activeSinceMs = 0
  /** The id of the root that signed each certificate, for the roots of the bundle in use. */
  #rootIds = new WeakMap<X509Certificate, string>()

  constructor(options: TrustedBundleOptions) {
    this.#options = options
  }

  get current(): CaBundle | undefined {
    return this.#current
  }

  /** @throws MeshError HM_CA_NOT_ENROLLED without a bundle */
  get trust(): CaTrust {
    const { trustDomain, roots } = this.#require()
    return { trustDomain, rootsPem: roots }
  }

  /** @throws MeshError HM_CA_NOT_ENROLLED without a bundle */
  get roots(): TrustBundle {
    return rootsOf(this.#require())
  }

  /** Uses what an earlier run stored. */
  restore({ server, bundle }: StoredBundle): void {
    if (this.#use(bundle)) this.#server = server
  }

  /** Uses what the CA at `server` has sent, and stores it. A bundle that cannot be used changes nothing. */
  take(bundle: CaBundle, server: string): void {
    const { store, log, onChange } = this.#options
    const isNew = bundle.id !== this.#current?.id
    if (isNew && !this.#use(bundle)) return
    // Also written when another CA has sent the same bundle: the address has changed.
    if (isNew || server !== this.#server) store.writeBundle({ server, bundle })
    this.#server = server
    if (!isNew) return
    log.info('Bundle taken', {
      roots: bundle.roots.length,
      revoked: bundle.revoked.length,
      activeRoot: bundle.activeRoot,
    })
    onChange()
  }

  /** The renewal state of a certificate now. */
  renewalOf({ certificate }: HeldCredential): Renewal {
    const nowMs = this.#options.clock.wallMs()
    // A clock that was set back must not postpone a renewal that is already known to be necessary.
    this.#activeSinceMs = Math.min(this.#activeSinceMs, nowMs)
    const { serialNumber, validFromDate, validToDate } = certificate
    const facts = {
      notBeforeMs: validFromDate.getTime(),
      notAfterMs: validToDate.getTime(),
      serialNumber,
    }
    const bundle = this.#current
    if (bundle === undefined) return renewalOf(facts, nowMs)
    const rootId = this.#rootOf(certificate, bundle)
    const rootChange = {
      sinceMs: this.#activeSinceMs,
      withinMs: bundle.renewWithinSeconds * 1_000,
    }
    const isRefused = rootId === '' || bundle.revoked.includes(serialNumber)
    return renewalOf(
      { ...facts, isRefused, ...(rootId !== bundle.activeRoot && { rootChange }) },
      nowMs,
    )
  }

  #require(): CaBundle {
    if (this.#current === undefined)
      throw new MeshError('HM_CA_NOT_ENROLLED', 'This host has no roots of the CA yet')
    return this.#current
  }

  #use(bundle: CaBundle): boolean {
    const { board, clock } = this.#options
    const isTaken = board.offerRoots(() => ({ ...rootsOf(bundle), revokedSerials: bundle.revoked }))
    if (!isTaken) return false
    if (this.#current?.activeRoot !== bundle.activeRoot) this.#activeSinceMs = clock.wallMs()
    this.#current = bundle
    this.#rootIds = new WeakMap()
    return true
  }

  /** The id of the root that signed it; empty if no root of the bundle did. */
  #rootOf(certificate: X509Certificate, bundle: CaBundle): string {
    let rootId = this.#rootIds.get(certificate)
    if (rootId === undefined) {
      rootId = findRoot(certificate, bundle.roots)
      this.#rootIds.set(certificate, rootId)
    }
    return rootId
  }
}

function rootsOf({ roots, trustDomain }: CaBundle): TrustBundle {
  return readRoots(roots.join('\n'), trustDomain)
}

function findRoot(certificate: X509Certificate, rootsPem: readonly string[]): string {
  for (const pem of rootsPem) {
    const root = new X509Certificate(pem)
    if (certificate.checkIssued(root) && certificate.verify(root.publicKey))
      return fingerprintOf(root)
  }
  return ''
}
