/**
 * How a connection ended, as the short codes that counters, access log and the admin API share; ending.ts maps failures
 * to them.
 *
 * The flags are Envoy's where Envoy has one, so that dashboards and habits carry over.
 */

/** Every flag and its meaning. */
export const responseFlags = {
  '-': 'The connection ended in order',
  DENY: 'Denied by an intention, or by the default policy',
  NC: 'No such service is known at the address',
  UH: 'The service has no healthy instance',
  UF: 'The connection to the instance, or to its host, failed',
  UC: 'The instance, or the tunnel to its host, broke the connection',
  UO: 'A limit of this host was reached',
  DC: 'The caller broke the connection',
  UT: 'A deadline passed',
  SELF: 'The destination is a port of hostmesh itself',
  TLS: 'A certificate did not hold, or holds no longer: of the peer, or our own',
  DR: 'This host is draining',
  PE: 'The peer broke the tunnel protocol',
} as const

/** Short code of how a connection ended. */
export type ResponseFlag = keyof typeof responseFlags

/** Whose doing an ending is: nobody's, a rule's, the caller's, or a failure of the mesh or the instance. */
const kinds = {
  '-': 'order',
  DENY: 'rule',
  NC: 'failure',
  UH: 'failure',
  UF: 'failure',
  UC: 'failure',
  UO: 'failure',
  DC: 'caller',
  UT: 'failure',
  SELF: 'rule',
  TLS: 'failure',
  // The host was told to end, and its callers were sent elsewhere.
  DR: 'order',
  PE: 'failure',
} as const satisfies Readonly<Record<ResponseFlag, 'order' | 'rule' | 'caller' | 'failure'>>

/** The flags that count as errors: NC, UH, UF, UC, UO, UT, TLS and PE. A flag of a later version does not. */
export const failureFlags: ReadonlySet<string> = new Set(
  Object.entries(kinds).flatMap(([flag, kind]) => (kind === 'failure' ? [flag] : [])),
)
