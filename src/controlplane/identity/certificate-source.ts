/**
 * The interface of a certificate source: `consul-ca.ts` (the agent's Connect CA), `builtin-ca.ts` (a host of
 * `hostmesh ca serve`) and `files-source.ts` (files, such as `hostmesh ca issue` writes).
 */
import type { Leaf, TrustBundle } from '../../model/certificate.ts'
import type { Problem } from '../../model/problem.ts'

/**
 * Supplies leaf certificates and roots. Keeps the last good ones when its origin fails; watches run until they are
 * disposed.
 */
export interface CertificateSource extends AsyncDisposable {
  /** Short description for status. */
  readonly description: string
  /** Follows one service's leaf: called at first issue and at every renewal, with validated PEM only. */
  watchLeaf(service: string, onLeaf: (leaf: Leaf) => void): Disposable
  /** Follows the roots. */
  watchRoots(onRoots: (bundle: TrustBundle) => void): Disposable
  /** What is wrong now; empty when nothing is. */
  problems(): readonly Problem[]
}
