/**
 * Who is measured, and in which role: the vocabulary that samples, targets and reports share.
 */

/** `reference`: no proxy, for orientation. `peer`: what the ratios are taken against. */
export type SubjectKind = 'reference' | 'peer' | 'hostmesh'

/** What reports say of a subject. */
export interface SubjectTitle {
  readonly kind: SubjectKind
  readonly title: string
  /** A TLS handshake for every connection, as a Connect sidecar does. */
  readonly tlsPerConnection: boolean
  /** Connections are diverted to it, not addressed to a port of it: held against {@link EXPLICIT_PORT}. */
  readonly isCaptured?: true
}

/** All subjects, in the order in which each round measures them. */
export const SUBJECTS = {
  direct: { kind: 'reference', title: 'no proxy', tlsPerConnection: false },
  haproxy: { kind: 'peer', title: 'HAProxy, TLS per connection', tlsPerConnection: true },
  nginx: { kind: 'peer', title: 'nginx stream, TLS per connection', tlsPerConnection: true },
  'envoy-tls': { kind: 'peer', title: 'Envoy, TLS per connection', tlsPerConnection: true },
  'envoy-h2': { kind: 'peer', title: 'Envoy, TCP in HTTP/2 CONNECT', tlsPerConnection: false },
  ztunnel: { kind: 'peer', title: 'ztunnel, TCP in HTTP/2 CONNECT', tlsPerConnection: false },
  'hostmesh-capture': {
    kind: 'hostmesh',
    title: 'hostmesh, captured at its virtual address',
    tlsPerConnection: false,
    isCaptured: true,
  },
  'hostmesh-capture-instance': {
    kind: 'hostmesh',
    title: 'hostmesh, captured at the address of an instance',
    tlsPerConnection: false,
    isCaptured: true,
  },
  'hostmesh-upstream': {
    kind: 'hostmesh',
    title: 'hostmesh, explicit upstream port',
    tlsPerConnection: false,
  },
  'hostmesh-upstream-2w': {
    kind: 'hostmesh',
    title: 'hostmesh, explicit upstream port, 2 workers',
    tlsPerConnection: false,
  },
} as const satisfies Record<string, SubjectTitle>

/** Name of a subject. */
export type SubjectName = keyof typeof SUBJECTS

/** All subject names in order. */
export const SUBJECT_NAMES: readonly SubjectName[] = Object.keys(SUBJECTS) as SubjectName[]

/** The subjects that the targets of hostmesh are about: one thread a hop, like the peers. */
export const JUDGED: readonly SubjectName[] = [
  'hostmesh-capture',
  'hostmesh-capture-instance',
  'hostmesh-upstream',
]

/** What captured connections are held against: the same without the rules. */
export const EXPLICIT_PORT: SubjectName = 'hostmesh-upstream'

/** Whether connections are diverted to a subject. */
export function isCaptured(name: SubjectName): boolean {
  const title: SubjectTitle = SUBJECTS[name]
  return title.isCaptured === true
}

/** The peers. */
export const PEERS: readonly SubjectName[] = SUBJECT_NAMES.filter(
  (name) => SUBJECTS[name].kind === 'peer',
)
