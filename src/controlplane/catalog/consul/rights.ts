/**
 * The policy line that each right needs, in the syntax of Consul's policies. Pure.
 *
 * Only for messages: an error about a missing right names the missing line.
 */

/** To read this host's identity, and on Consul 1.8 the default policy. */
export const AGENT_RULE = 'agent_prefix "" { policy = "read" }'

/** To see instances at all: each belongs to a node. */
export const NODE_RULE = 'node_prefix "" { policy = "read" }'

/** To see the services of others. */
export const SERVICES_RULE = 'service_prefix "" { policy = "read" }'

/** To see one service, with its chain and its intentions. */
export function readRule(service: string): string {
  return `service "${service}" { policy = "read" }`
}

/** To register a service, and to get its certificate. */
export function writeRule(service: string): string {
  return `service "${service}" { policy = "write" }`
}

/** The line needed to read `path`; undefined where none is needed, or where its absence is not an error. */
export function ruleFor(path: string): string | undefined {
  const bare = path.split('?', 1)[0] ?? ''
  const name = decodeURIComponent(bare.slice(bare.lastIndexOf('/') + 1))
  if (bare.startsWith('/v1/agent/connect/ca/leaf/')) return writeRule(name)
  if (bare.startsWith('/v1/discovery-chain/')) return readRule(name)
  if (bare.startsWith('/v1/health/')) return `${NODE_RULE} ${readRule(name)}`
  if (bare === '/v1/agent/self') return AGENT_RULE
  if (bare.startsWith('/v1/catalog/')) return SERVICES_RULE
  return undefined
}
