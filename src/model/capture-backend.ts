/**
 * The capture backends by name, and the differences that concern other modules. The backends themselves are in
 * src/controlplane/capture/backends.ts. Pure.
 */

/** The names of the backends. */
export const backendKinds = ['nftables', 'iptables'] as const

/** The name of a backend. */
export type BackendKind = (typeof backendKinds)[number]

/** What other modules need to know of a backend. */
export interface BackendTraits {
  /** TPROXY keeps the destination address; REDIRECT rewrites it, and connection tracking has the original. */
  readonly divertsBy: 'tproxy' | 'redirect'
  /** Whether the kernel passes it the packets that cross a bridge from container to container. */
  readonly seesBridges: boolean
  /** What it cannot do (docs/capture.md, "What stays"), for operators; undefined when it has no limits. */
  readonly limits: string | undefined
}

/** The traits of each backend. */
export const backendTraits: Readonly<Record<BackendKind, BackendTraits>> = {
  nftables: { divertsBy: 'tproxy', seesBridges: false, limits: undefined },
  iptables: {
    divertsBy: 'redirect',
    seesBridges: true,
    limits:
      'connections are tracked: a full table (nf_conntrack_max) and NOTRACK rules refuse them',
  },
}
