/**
 * Whether Consul and the CA answer this host before a daemon starts, and permit what it will ask. Only reads; the agent
 * of Consul issues a certificate for each service, as it will for the daemon.
 */
import { once } from 'node:events'
import { connect } from 'node:net'
import { hostname } from 'node:os'
import type { Config } from '../../config/schema.ts'
import {
  AGENT_RULE,
  NODE_RULE,
  ruleFor,
  SERVICES_RULE,
} from '../../controlplane/catalog/consul/rights.ts'
import {
  type ConsulTransport,
  createTransport,
  requireOk,
} from '../../controlplane/catalog/consul/transport.ts'
import { CaClient } from '../../controlplane/identity/ca-client.ts'
import { readHostLeaf, readHostRoots } from '../../controlplane/identity/host-directory.ts'
import { readTokenFile } from '../../controlplane/identity/token-file.ts'
import { readLeaf } from '../../controlplane/identity/x509.ts'
import { describeError, errorCode } from '../../lib/errors.ts'
import { member } from '../../lib/json-value.ts'
import { CA_ADDRESS } from '../../model/join-token.ts'
import { type Check, fail, failedBy, ok, warn } from './check.ts'

const CONNECT_MS = 5_000

/** Whether the agent answers, knows servers, and permits what this host needs. Empty without Consul. */
export async function checkConsul(config: Config, nowMs: number): Promise<Check[]> {
  const { catalog, certificates } = config
  if (catalog.kind !== 'consul') return []
  let transport: ConsulTransport
  try {
    transport = createTransport(catalog)
  } catch (error) {
    return [failedBy('consul', error, 'Correct the section catalog')]
  }
  using agent = transport
  const start = await checkAgent(agent)
  if (start.result === 'fail') return [start]
  const rights = await checkRights(agent)
  const names = [...new Set(config.services.map(({ name }) => name))]
  const leaves =
    certificates.kind === 'consul'
      ? await Promise.all(names.map((name) => checkConsulLeaf(agent, name, nowMs)))
      : []
  return [start, ...rights, ...merged('ca', leaves, `${names.length} services have certificates`)]
}

async function checkAgent(transport: ConsulTransport): Promise<Check> {
  const next = 'Start the agent, or correct catalog.address'
  try {
    const answer = await transport.call('GET', '/v1/agent/self')
    const { body } = requireOk(answer, "reading the agent's identity", AGENT_RULE)
    const version = member(member(body, 'Config'), 'Version')
    return ok(
      'consul',
      `${transport.address} answers, Consul ${typeof version === 'string' ? version : '?'}`,
    )
  } catch (error) {
    return failedBy('consul', error, next)
  }
}

/** Lists are empty, not errors, where a token may not read; the servers are in every catalog. */
async function checkRights(transport: ConsulTransport): Promise<Check[]> {
  const next = `The policy of the token needs: ${NODE_RULE} ${SERVICES_RULE}`
  try {
    const path = '/v1/catalog/service/consul?stale'
    const answer = await transport.call('GET', path)
    const { body } = requireOk(answer, "reading Consul's own servers", ruleFor(path))
    if (Array.isArray(body) && body.length > 0)
      return [ok('token', 'The token reads services and nodes')]
    return [warn('token', 'Consul does not show its own servers to this token', next)]
  } catch (error) {
    if (errorCode(error) === 'HM_CONSUL_FORBIDDEN')
      return [fail('token', describeError(error), next)]
    return [failedBy('token', error, 'See the log of the Consul agent')]
  }
}

async function checkConsulLeaf(
  transport: ConsulTransport,
  service: string,
  nowMs: number,
): Promise<Check> {
  const path = `/v1/agent/connect/ca/leaf/${encodeURIComponent(service)}`
  try {
    const answer = await transport.call('GET', path)
    const { body } = requireOk(answer, `issuing a certificate of ${service}`, ruleFor(path))
    const [from, until] = ['ValidAfter', 'ValidBefore'].map((key) =>
      Date.parse(String(member(body, key))),
    )
    if ((from ?? 0) > nowMs || (until ?? nowMs) < nowMs)
      return fail(
        'clock',
        `The certificate that Consul issued for ${service} is not valid now: one of both clocks is wrong`,
        'Synchronize the clocks of this host and of the Consul servers',
      )
    return ok('ca', `Consul issues certificates of ${service}`)
  } catch (error) {
    return failedBy('ca', error, 'See consul connect ca get-config')
  }
}

/** Whether certificates can be had, from files or from the CA of hostmesh. Empty for Consul's. */
export async function checkCertificates(config: Config, nowMs: number): Promise<Check[]> {
  const { certificates } = config
  if (certificates.kind === 'consul') return []
  if (certificates.kind === 'builtin') return [await checkBuiltinCa(config, certificates)]
  const { directory } = certificates
  // Files that patterns name are checked one by one as named files.
  if (directory === undefined) return []
  const names = [...new Set(config.services.map(({ name }) => name))]
  const next = 'Issue them with hostmesh ca issue (docs/certificates.md)'
  try {
    const roots = readHostRoots(directory)
    const leaves = names.map((name) => {
      try {
        readLeaf(readHostLeaf(directory, name), roots, nowMs)
        return ok('ca', `${name} has a certificate`)
      } catch (error) {
        return failedBy('ca', error, next)
      }
    })
    return merged('ca', leaves, `${names.length} services have certificates in ${directory}`)
  } catch (error) {
    return [failedBy('ca', error, next)]
  }
}

async function checkBuiltinCa(
  { node }: Config,
  { tokenFile, server }: Extract<Config['certificates'], { kind: 'builtin' }>,
): Promise<Check> {
  try {
    if (tokenFile === undefined) return await checkReachable(server)
    const token = readTokenFile(tokenFile, node.name ?? hostname())
    using client = new CaClient(server ?? token.address)
    await client.fetchRoot(token)
    return ok('ca', `${client.address} answers, with the root of the join token`)
  } catch (error) {
    // A host that has joined needs no token any more.
    if (errorCode(error) === 'HM_FILE_UNREADABLE') return checkReachable(server)
    return failedBy('ca', error, 'See hostmesh ca status on the machine of the CA')
  }
}

async function checkReachable(server: string | undefined): Promise<Check> {
  const match = CA_ADDRESS.exec(server ?? '')
  if (server === undefined || match === null)
    return warn(
      'ca',
      'Not checked: neither certificates.server nor a readable join token is given',
      'Set one of them, unless this host has joined already',
    )
  const socket = connect({
    host: match[1] ?? match[2] ?? '',
    port: Number(match[3]),
    timeout: CONNECT_MS,
  })
  socket.once('timeout', () => socket.destroy(new Error(`no answer in ${CONNECT_MS / 1_000} s`)))
  try {
    await once(socket, 'connect')
    return ok('ca', `${server} accepts connections`)
  } catch (error) {
    const next = 'Start hostmesh ca serve, or open the port in the firewall'
    return fail('ca', `${server} cannot be reached: ${describeError(error)}`, next)
  } finally {
    socket.destroy()
  }
}

/** The failures of several alike checks, or one line if there are none. */
function merged(check: string, all: readonly Check[], finding: string): Check[] {
  if (all.length === 0) return []
  const failures = all.filter(({ result }) => result !== 'ok')
  return failures.length > 0 ? failures : [ok(check, finding)]
}
