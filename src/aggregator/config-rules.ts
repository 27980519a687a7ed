/**
 * Rules of the aggregator's configuration that involve several keys. Pure.
 */
import type { DocumentPath } from '../lib/yaml-document.ts'
import { isLoopback } from '../model/address.ts'
import type { AggregatorConfig } from './config.ts'

/** One violation. */
export interface ConfigProblem {
  readonly path: DocumentPath
  readonly message: string
}

/** Size of sockaddr_un.sun_path, without the terminating zero. */
const MAX_SOCKET_PATH_BYTES = 107

const BEYOND_LOOPBACK =
  'give tls and one of access.tokens, access.clientCertificates or access.proxy.certificate; or listen at 127.0.0.1 and let a tunnel or a proxy lead there'

/** All violations. */
export function configProblems(config: AggregatorConfig): readonly ConfigProblem[] {
  return [...listenProblems(config), ...accessProblems(config), ...retentionProblems(config)]
}

function listenProblems({ listen, reports, tls, access }: AggregatorConfig): ConfigProblem[] {
  const problems: ConfigProblem[] = []
  const isGuarded =
    tls !== undefined &&
    (access.tokens !== undefined ||
      access.clientCertificates !== undefined ||
      access.proxy?.certificate !== undefined)
  if (!isLoopback(listen.address) && !isGuarded)
    problems.push({
      path: ['listen', 'address'],
      message: `The API would be open to everyone who reaches ${listen.address}: ${BEYOND_LOOPBACK}`,
    })
  if (!isLoopback(reports.address))
    problems.push({
      path: ['reports', 'address'],
      message:
        'Must be a loopback address: reports come through the mesh, which knows who sends them',
    })
  if (listen.port === reports.port && listen.address === reports.address)
    problems.push({ path: ['reports', 'port'], message: 'Is the port of listen, too' })
  const sockets = [
    [['listen', 'socket'], listen.socket],
    [['access', 'proxy', 'socket'], access.proxy?.socket],
  ] as const
  for (const [path, socket] of sockets)
    if (socket !== undefined && new TextEncoder().encode(socket).length > MAX_SOCKET_PATH_BYTES)
      problems.push({ path, message: 'Must have at most 107 bytes, as the path of a unix socket' })
  return problems
}

function accessProblems({ listen, tls, access }: AggregatorConfig): ConfigProblem[] {
  const { clientCertificates, proxy } = access
  const problems: ConfigProblem[] = []
  if (clientCertificates !== undefined && tls === undefined)
    problems.push({
      path: ['access', 'clientCertificates'],
      message: 'Needs tls: a client certificate is shown in a TLS handshake',
    })
  if (proxy === undefined) return problems
  if ((proxy.socket === undefined) === (proxy.certificate === undefined))
    problems.push({
      path: ['access', 'proxy'],
      message:
        'Must have either socket or certificate: the header is accepted only from a known proxy',
    })
  if (proxy.certificate !== undefined && clientCertificates === undefined)
    problems.push({
      path: ['access', 'proxy', 'certificate'],
      message: 'Needs access.clientCertificates.roots, by which the certificate is checked',
    })
  if (proxy.socket === listen.socket)
    problems.push({
      path: ['access', 'proxy', 'socket'],
      message: 'Is the socket of listen, where no header is accepted',
    })
  if (proxy.roles.length === 0 && proxy.role === undefined)
    problems.push({
      path: ['access', 'proxy'],
      message: 'Lets nobody in: give roles of users, or role for all of them',
    })
  return problems
}

function retentionProblems({ store: { retention } }: AggregatorConfig): ConfigProblem[] {
  const { seconds, minutes, hours } = retention
  if (seconds <= minutes && minutes <= hours) return []
  return [
    {
      path: ['store', 'retention'],
      message: 'Coarser steps must be kept at least as long as finer ones',
    },
  ]
}
