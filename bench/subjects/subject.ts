/**
 * What the benchmark asks of everything it measures: to say whether it is here, and to start its two hops
 * between the load on host A and the backend on host B.
 */
import { join } from 'node:path'
import { BACKEND_PORT } from '../site/backend.ts'
import type { PeerCertificates } from '../site/certificates.ts'
import type { Namespace } from '../site/namespaces.ts'
import { RunningProcess } from '../site/process.ts'
import type { SubjectName } from '../subject-names.ts'

/** Port on 127.0.0.1 of host A where a proxy takes connections to the backend. */
export const ENTRY_PORT = 15_000

/** Port of host B where the second hop takes the first one's TLS connections. */
export const TUNNEL_PORT = 15_443

/** Where the load connects, and as which numeric user. */
export interface Entry {
  readonly host: string
  readonly port: number
  readonly uid?: number
}

/** Where a subject finds its surroundings. */
export interface Site {
  readonly a: Namespace
  readonly b: Namespace
  /** Its own. */
  readonly directory: string
  /** That of the whole run. */
  readonly runDirectory: string
  readonly certificates: PeerCertificates
  /** Directory for CPU profiles of hostmesh; undefined when none are wanted. */
  readonly profileDirectory: string | undefined
}

/** Where and how a peer that misbehaves gets in. */
export interface Attack {
  readonly host: string
  readonly port: number
  /** Of a service that the caller may reach, and of one that it may not: the one that is measured. */
  readonly allowedName: string
  readonly deniedName: string
  /** Its own certificate, in the directory of the whole run. */
  readonly certificate: string
  readonly key: string
}

/** Something that is measured. */
export interface Subject {
  readonly name: SubjectName
  readonly entry: Entry
  /** Address on host B where the backend listens for it. */
  readonly backendAddress: string
  /** Set where a misbehaving peer is to be measured; file names are below the directory of the run. */
  readonly attack?: Attack
  /** What to look at when it does not start. */
  readonly startHint?: string
  /** Why it cannot be measured on this machine; undefined when it can. */
  absent(): string | undefined
  /** Program and version, for the header of the results. Called only when not absent. */
  version(): Promise<string>
  /**
   * Starts the hops, first A then B, without waiting for them to listen; none for no proxy. The caller
   * stops whatever is in the list, also when start() throws half way.
   */
  start(site: Site, hops: RunningProcess[]): Promise<void>
}

/** The entry of every subject that is reached by an explicit port. */
export const EXPLICIT_ENTRY: Entry = { host: '127.0.0.1', port: ENTRY_PORT }

/** Where the second hop finds the backend. */
export const LOCAL_BACKEND = `127.0.0.1:${BACKEND_PORT}`

/** Starts one hop with its log in the site's directory, and adds it to `hops`. */
export function startHop(
  site: Site,
  hops: RunningProcess[],
  side: 'a' | 'b',
  argv: readonly string[],
): void {
  hops.push(
    new RunningProcess({
      name: `hop ${side.toUpperCase()}`,
      argv: site[side].command(argv),
      logFile: join(site.directory, `hop-${side}.log`),
    }),
  )
}
