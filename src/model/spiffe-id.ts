/**
 * SPIFFE IDs in Consul's format, and the server names that Connect peers send.
 *
 * Identities are compared as strings, byte by byte, never as patterns. An ID contains only service names that
 * {@link isServiceName} accepts, so it never needs escaping.
 */

/** The service that a leaf certificate identifies. */
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

/** Parses a service's SPIFFE ID; undefined for anything else (agents, gateways, other namespaces). */
export function parseSpiffeId(uri: string): ServiceIdentity | undefined {
  const match = SPIFFE_ID.exec(uri)
  if (match === null) return undefined
  const [, trustDomain, datacenter, service] = match
  if (trustDomain === undefined || datacenter === undefined || service === undefined)
    return undefined
  return { trustDomain, datacenter, service }
}

/** The TLS server name that Connect sends for a service: `<svc>.default.<dc>.internal.<trust domain>`. */
export function formatServerName(identity: ServiceIdentity): string {
  return `${identity.service}.default.${identity.datacenter}.internal.${identity.trustDomain}`
}

/**
 * The offered service, of our datacenter and trust domain, that a TLS server name means; undefined when there is none
 * or the name has another form, datacenter or trust domain. Sidecars put a resolver's subset in front
 * (`v1.db.default.…`): it means the same service. Case-insensitive, like DNS names.
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
  // Service names may contain dots too: the whole name is tried first.
  if (offered.has(service)) return service
  const [subset = ''] = service.split('.', 1)
  const rest = service.slice(subset.length + 1)
  return isSubsetName(subset) && isServiceName(rest) && offered.has(rest) ? rest : undefined
}

/** Whether a name is a valid subset name: Consul accepts one DNS label. */
export function isSubsetName(name: string): boolean {
  return /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/.test(name)
}

/** Whether a name is a valid service name: it fits a SPIFFE path and a server name, without pattern characters. */
export function isServiceName(name: string): boolean {
  return /^[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?$/.test(name)
}
