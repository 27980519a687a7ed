/**
 * The ways of diverting connections, by name, and what tells them apart beyond capture itself. What each does is
 * src/controlplane/capture/backends.ts's. Pure.
 */

/** The ways. */
export const backendKinds = ['nftables', 'iptables'] as const

/** One of the ways. */
export type BackendKind = (typeof backendKinds)[number]

/** What others must know of a way. */
export interface BackendTraits {
  /** TPROXY leaves the destination as it was; REDIRECT rewrites it, and tracking knows what it was. */
  readonly divertsBy: 'tproxy' | 'redirect'
  /** Whether the kernel shows it what crosses a bridge from container to container. */
  readonly seesBridges: boolean
  /** What it cannot do (docs/capture.md, "What stays"), for an operator; undefined when that is nothing. */
  readonly limits: string | undefined
}

/** What is to be known of each way. */
export const backendTraits: Readonly<Record<BackendKind, BackendTraits>> = {
  nftables: { divertsBy: 'tproxy', seesBridges: false, limits: undefined },
  iptables: {
    divertsBy: 'redirect',
    seesBridges: true,
    limits:
      'connections are tracked: a full table (nf_conntrack_max) and NOTRACK rules refuse them',
  },
}
