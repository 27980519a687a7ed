/**
 * What the daemon asks of a certificate source: `consul-ca.ts` (the agent's Connect CA), `builtin-ca.ts` (a host of
 * `hostmesh ca serve`) and `files-source.ts` (files, such as `hostmesh ca issue` writes).
 */
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import type { Problem } from '../../model/problem.ts'

/** A running watch; closing it stops its calls. */
export interface CertificateWatch {
  close(): void
}

/** Where leaf certificates and roots come from. Keeps the last good ones when its origin fails. */
export interface CertificateSource extends AsyncDisposable {
  /** A few words for status. */
  readonly description: string
  /** Follows one service's leaf: called at first issue and at every renewal, with validated PEM only. */
  watchLeaf(service: string, onLeaf: (leaf: Leaf) => void): CertificateWatch
  /** Follows the roots. */
  watchRoots(onRoots: (bundle: TrustBundle) => void): CertificateWatch
  /** What is wrong now; empty when nothing is. */
  problems(): readonly Problem[]
}
