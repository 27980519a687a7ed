/**
 * The replacement of a root: what may happen next, and which hosts it waits for. Pure.
 *
 * ```
 *   (none) --start--> spreading --every host has both roots--> reissuing --finish--> (none)
 *                         |                                     |    ^
 *                       abort                                 abort--'  the two roots change places
 *                         v
 *                       (none)
 * ```
 *
 * No host is ever shown a certificate of a root it does not have: the target signs only when every host has
 * said that it uses both, and the retiring root goes only when nothing that lives was signed by it.
 */
import type { CaHost, CaState } from './ca-state.ts'
import type { Issue } from './journal.ts'

/** How far one host is. */
export interface HostProgress {
  readonly host: string
  /** It has said that it uses the roots of now. */
  readonly hasRoots: boolean
  /** Which root its own certificate is from. */
  readonly hostRoot: string
  /** Its services whose newest certificate is from the root that signs now, and the others. */
  readonly reissued: readonly string[]
  readonly pending: readonly string[]
}

/** What progress is measured against. */
export interface RotationNow {
  /** The set of roots of the bundle. */
  readonly rootsId: string
  /** What each host has said that it uses, by its name. */
  readonly rootsIdByHost: ReadonlyMap<string, string>
  readonly nowMs: number
  readonly graceMs: number
}

/** Whether every host that counts has the roots of now. */
export function isSpread(state: CaState, now: RotationNow): boolean {
  return state.hosts.every(
    (host) => !doesCount(host, now) || now.rootsIdByHost.get(host.name) === now.rootsId,
  )
}

/** One whose own certificate could still be renewed. The others need a new token anyhow. */
function doesCount(host: CaHost, now: RotationNow): boolean {
  return (newestCertificate(host)?.notAfterMs ?? 0) + now.graceMs > now.nowMs
}

/** Progress of every host that counts. */
export function progressOf(
  state: CaState,
  issuesOf: (host: string) => readonly Issue[],
  now: RotationNow,
): readonly HostProgress[] {
  return state.hosts
    .filter((host) => doesCount(host, now))
    .map((host) => {
      const newest = new Map<string, Issue>()
      for (const issue of issuesOf(host.name)) {
        if (issue.service === null || issue.notAfterMs <= now.nowMs) continue
        const known = newest.get(issue.service)
        if (known === undefined || known.issuedAtMs <= issue.issuedAtMs)
          newest.set(issue.service, issue)
      }
      const services = [...newest.values()]
      const isReissued = (issue: Issue): boolean => issue.rootId === state.activeRoot
      const names = (issues: readonly Issue[]): string[] =>
        issues.map(({ service }) => service ?? '').toSorted()
      return {
        host: host.name,
        hasRoots: now.rootsIdByHost.get(host.name) === now.rootsId,
        hostRoot: newestCertificate(host)?.rootId ?? '',
        reissued: names(services.filter(isReissued)),
        pending: names(services.filter((issue) => !isReissued(issue))),
      }
    })
}

/** Hosts that the next step has to wait for. */
export function laggingHosts(state: CaState, progress: readonly HostProgress[]): readonly string[] {
  const { rotation } = state
  if (rotation === null) return []
  return progress
    .filter(
      ({ hasRoots, hostRoot, pending }) =>
        !hasRoots ||
        (rotation.phase === 'reissuing' && (pending.length > 0 || hostRoot !== rotation.target)),
    )
    .map(({ host }) => host)
}

/** The state after the target has begun to sign. */
export function withTargetSigning(state: CaState): CaState {
  const { rotation } = state
  if (rotation === null) return state
  return {
    ...state,
    activeRoot: rotation.target,
    rotation: { ...rotation, phase: 'reissuing' },
  }
}

/** The state after the retiring root has gone. */
export function withoutRetiring(state: CaState): CaState {
  const { rotation } = state
  if (rotation === null) return state
  return {
    ...state,
    roots: state.roots.filter(({ id }) => id !== rotation.retiring),
    activeRoot: rotation.target,
    rotation: null,
  }
}

/**
 * The state after a change of mind. While the target has not signed it simply goes; afterwards everything
 * has to be issued again, so the two roots change places and `finish` removes what was the target.
 */
export function withRotationAborted(state: CaState): CaState {
  const { rotation } = state
  if (rotation === null) return state
  if (rotation.phase === 'reissuing')
    return {
      ...state,
      activeRoot: rotation.retiring,
      rotation: { ...rotation, retiring: rotation.target, target: rotation.retiring },
    }
  return {
    ...state,
    roots: state.roots.filter(({ id }) => id !== rotation.target),
    activeRoot: rotation.retiring,
    rotation: null,
  }
}

/** A host's newest certificate of its own. */
export function newestCertificate(host: CaHost): CaHost['certificates'][number] | undefined {
  return host.certificates.at(-1)
}
