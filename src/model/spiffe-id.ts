/**
 * SPIFFE IDs as Consul writes them, and the server names Connect dials with.
 *
 * Identities are compared as strings, byte by byte, never as patterns. A service may appear in an ID
 * only under the names that {@link isServiceName} takes, so an ID never needs escaping.
 */

/** Who a leaf certificate speaks for. */
export interface ServiceIdentity {
  readonly trustDomain: string
  readonly datacenter: string
  readonly service: string
}

/** The SPIFFE ID of a service: `spiffe://<trust domain>/ns/default/dc/<dc>/svc/<service>`. */
export function formatSpiffeId(identity: ServiceIdentity): string {
  return `spiffe://${identity.trustDomain}/ns/default/dc/${identity.datacenter}/svc/${identity.service}`
}

const SPIFFE_ID =
  /^spiffe:\/\/([a-z0-9._-]{1,255})\/ns\/default\/dc\/([a-z0-9_-]{1,64})\/svc\/([A-Za-z0-9._-]{1,128})$/

/** Reads a service's SPIFFE ID; undefined for anything else (agents, gateways, other namespaces). */
export function parseSpiffeId(uri: string): ServiceIdentity | undefined {
  const match = SPIFFE_ID.exec(uri)
  if (match === null) return undefined
  const [, trustDomain, datacenter, service] = match
  if (trustDomain === undefined || datacenter === undefined || service === undefined)
    return undefined
  return { trustDomain, datacenter, service }
}

/** The TLS server name with which Connect asks for a service: `<svc>.default.<dc>.internal.<trust domain>`. */
export function formatServerName(identity: ServiceIdentity): string {
  return `${identity.service}.default.${identity.datacenter}.internal.${identity.trustDomain}`
}

/**
 * Which of the services offered in our datacenter and trust domain a TLS server name asks for; undefined
 * when none is, or when the name is of another shape or place. Sidecars put a resolver's subset in front
 * (`v1.db.default.…`): that is the same service. Compared without regard to case, as DNS names are.
 */
export function serviceOfServerName(
  serverName: string,
  place: Omit<ServiceIdentity, 'service'>,
  offered: ReadonlySet<string>,
): string | undefined {
  const suffix = `.default.${place.datacenter}.internal.${place.trustDomain}`.toLowerCase()
  const name = serverName.toLowerCase()
  if (!name.endsWith(suffix)) return undefined
  const service = name.slice(0, -suffix.length)
  if (!isServiceName(service)) return undefined
  // Service names may have dots as well: the whole name is tried first.
  if (offered.has(service)) return service
  const [subset = ''] = service.split('.', 1)
  const rest = service.slice(subset.length + 1)
  return isSubsetName(subset) && isServiceName(rest) && offered.has(rest) ? rest : undefined
}

/** Whether a name can be one of a subset: Consul takes one DNS label. */
export function isSubsetName(name: string): boolean {
  return /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name)
}

/** Whether a name can be a mesh service: what fits a SPIFFE path and a server name, no pattern characters. */
export function isServiceName(name: string): boolean {
  return /^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$/.test(name)
}
