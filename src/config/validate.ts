/**
 * Rules of the configuration that involve several keys. Pure: what depends on the machine (users, interfaces, open
 * ports) is checked at start, by the part that uses it.
 */
import { canonicalIp, formatAddress, isIpv6, isLoopback, isUndialable } from '../model/address.ts'
import { type Cidr, cidrContains, cidrSize, cidrsOverlap, parseCidr } from '../model/cidr.ts'
import { hostIdentity, localServices } from './local-services.ts'
import { type Config, isDnsOn } from './schema.ts'

/** A violated rule, with the key where it is best corrected. */
export interface ConfigProblem {
  readonly path: readonly (string | number)[]
  readonly message: string
}

/** Longest path that fits a Unix socket address on Linux, without the terminating zero byte. */
const MAX_SOCKET_PATH_BYTES = 107

/** All violated rules of a configuration that satisfies its schema; empty when it is valid. */
export function validateConfig(config: Config): readonly ConfigProblem[] {
  return [
    ...sourceProblems(config),
    ...certificateProblems(config),
    ...serviceProblems(config),
    ...identityProblems(config),
    ...portProblems(config),
    ...captureProblems(config),
    ...rangeProblems(config),
    ...adminProblems(config),
    ...otlpProblems(config),
  ]
}

/** What is allowed but hardly intended, one sentence each; empty when there is nothing. */
export function configWarnings(config: Config): readonly string[] {
  const identified = config.services.filter(({ identity }) => identity !== undefined)
  if (config.capture.mode === 'on') {
    if (identified.length > 0 || hostIdentity(config) !== undefined) return []
    // No error: a reload may remove the last workload of a host like any other.
    return [
      'Capture is on and no service has an identity: nothing is captured, and virtual addresses are refused to every process; give a service an identity, or set capture.mode: off',
    ]
  }
  if (identified.length === 0) return []
  const names = [...new Set(identified.map(({ name }) => name))].join(', ')
  return [
    `Capture is off, so the identity of ${names} diverts nothing and calls leave without the mesh, but for explicit upstreams; set capture.mode: on, or leave out identity`,
  ]
}

function otlpProblems({ metrics: { otlp } }: Config): ConfigProblem[] {
  if (otlp === undefined) return []
  const { protocol, hostname, username, password } = new URL(otlp.endpoint)
  const path = ['metrics', 'otlp', 'endpoint']
  if (username !== '' || password !== '')
    return [{ path, message: 'Give the user and password as an authorization header instead' }]
  const ip = canonicalIp(hostname.replace(/^\[(.*)\]$/, '$1'))
  const isLocal = hostname === 'localhost' || (ip !== undefined && isLoopback(ip))
  if (protocol === 'https:' || isLocal || otlp.insecure) return []
  return [
    {
      path,
      message:
        'Metrics would leave this host in plaintext; use https://, a collector on this host, or set metrics.otlp.insecure: true',
    },
  ]
}

function sourceProblems(config: Config): ConfigProblem[] {
  const problems: ConfigProblem[] = []
  if (config.catalog.kind === 'file' && config.certificates.kind === 'consul')
    problems.push({
      path: ['certificates', 'kind'],
      message:
        'Certificates from Consul come from the agent of the catalog, and the catalog is a file; use files or builtin, or catalog kind consul',
    })
  if (
    config.catalog.kind === 'consul' &&
    config.catalog.token !== undefined &&
    config.catalog.tokenFile !== undefined
  )
    problems.push({
      path: ['catalog', 'token'],
      message: 'Give either token or tokenFile, not both',
    })
  if (config.catalog.kind === 'consul') problems.push(...agentTlsProblems(config.catalog))
  return problems
}

function agentTlsProblems(
  catalog: Extract<Config['catalog'], { kind: 'consul' }>,
): ConfigProblem[] {
  const { address, certFile, keyFile, tlsServerName } = catalog
  const problems: ConfigProblem[] = []
  if ((certFile === undefined) !== (keyFile === undefined))
    problems.push({
      path: ['catalog', certFile === undefined ? 'keyFile' : 'certFile'],
      message: 'Give both certFile and keyFile, or neither',
    })
  // caFile alone does no harm with a socket; the other keys would only seem to protect the connection.
  if (!address.startsWith('https:') && (certFile ?? keyFile ?? tlsServerName) !== undefined)
    problems.push({
      path: ['catalog', 'address'],
      message: `certFile, keyFile and tlsServerName are for an https address, and this one is ${address}`,
    })
  return problems
}

function certificateProblems(config: Config): ConfigProblem[] {
  const { certificates } = config
  if (certificates.kind === 'files') {
    const { directory, certificate, key, roots, trustDomain } = certificates
    const patterns = [certificate, key, roots]
    const given = patterns.filter((pattern) => pattern !== undefined).length
    if (directory === undefined ? given < patterns.length : given > 0 || trustDomain !== undefined)
      return [
        {
          path: ['certificates', directory === undefined ? 'kind' : 'directory'],
          message: 'Give either directory alone, or certificate, key and roots (and trustDomain)',
        },
      ]
    const unspecific = (['certificate', 'key'] as const).find(
      (name) => certificates[name]?.includes('{service}') === false,
    )
    if (unspecific !== undefined && config.services.length > 1)
      return [
        {
          path: ['certificates', unspecific],
          message: 'Must contain {service}, since this host has several services',
        },
      ]
  }
  if (certificates.kind === 'builtin' && certificates.server !== undefined) {
    const host = certificates.server.replace(/:[0-9]+$/, '').replaceAll(/[[\]]/g, '')
    const address = canonicalIp(host)
    const ranges = [config.capture.virtualRange, config.capture.virtualRange6].flatMap(
      (text) => parseCidr(text) ?? [],
    )
    const isVirtual =
      address === undefined
        ? /\.(mesh|virtual\.consul)$/i.test(host)
        : ranges.some((range) => cidrContains(range, address))
    if (isVirtual)
      return [
        {
          path: ['certificates', 'server'],
          message: 'Must not be reached through the mesh: its certificates come from there',
        },
      ]
  }
  return []
}

function deliveryProblems({ services }: Config): ConfigProblem[] {
  return services.flatMap((service, index): ConfigProblem[] => {
    const { deliverFrom, proxyProtocol, port, address } = service
    const problem = (key: string, message: string): ConfigProblem[] => [
      { path: ['services', index, key], message },
    ]
    if (port === undefined && deliverFrom !== undefined)
      return problem('deliverFrom', 'Nothing is delivered to a service without port')
    if (port === undefined && proxyProtocol !== 'off')
      return problem('proxyProtocol', 'Nothing is delivered to a service without port')
    if (deliverFrom === undefined) return []
    if (isIpv6(deliverFrom) !== isIpv6(address))
      return problem('deliverFrom', `Must be of the same family as address, ${address}`)
    if (isUndialable(deliverFrom))
      return problem('deliverFrom', `${deliverFrom} is not the address of an interface`)
    return []
  })
}

function serviceProblems(config: Config): ConfigProblem[] {
  const problems: ConfigProblem[] = deliveryProblems(config)
  const indexById = new Map<string, number>()
  const indexByTarget = new Map<string, number>()
  for (const [index, service] of config.services.entries()) {
    const id = service.id ?? service.name
    const firstWithId = indexById.get(id)
    if (firstWithId === undefined) indexById.set(id, index)
    else
      problems.push({
        path: ['services', index, service.id === undefined ? 'name' : 'id'],
        message: `Service ID "${id}" is already that of services[${firstWithId}]; give each instance an id of its own`,
      })
    if (service.port === undefined) {
      const isIdle = service.identity === undefined && service.upstreams.length === 0
      if (isIdle && service !== hostIdentity(config))
        problems.push({
          path: ['services', index],
          message: `Service ${service.name} has neither port, identity nor upstreams: it can do nothing`,
        })
      continue
    }
    const target = `${service.name} ${formatAddress({ ip: service.address, port: service.port })}`
    const firstWithTarget = indexByTarget.get(target)
    if (firstWithTarget === undefined) indexByTarget.set(target, index)
    else
      problems.push({
        path: ['services', index, 'port'],
        message: `The same instance is already services[${firstWithTarget}]`,
      })
  }
  return problems
}

function identityProblems(config: Config): ConfigProblem[] {
  const problems: ConfigProblem[] = []
  const seen: { readonly kind: string; readonly value: string; readonly index: number }[] = []
  for (const { selector, index } of selectors(config)) {
    const rival = seen.find((other) => isSameWorkload(other, selector))
    if (rival === undefined) seen.push({ ...selector, index })
    else
      problems.push({
        path: ['services', index, 'identity', selector.kind],
        message:
          rival.value === selector.value
            ? `services[${rival.index}] has the same identity; the kernel could not tell the two apart`
            : `One of ${selector.value} and ${rival.value} (services[${rival.index}]) contains the other; the kernel could not tell the two apart`,
      })
  }
  return problems
}

function selectors(config: Config): {
  readonly index: number
  readonly selector: { readonly kind: string; readonly value: string }
}[] {
  return config.services.flatMap(({ identity }, index) => {
    if (identity === undefined) return []
    if ('cgroup' in identity)
      return [{ index, selector: { kind: 'cgroup', value: identity.cgroup } }]
    if ('user' in identity)
      return [{ index, selector: { kind: 'user', value: String(identity.user) } }]
    return [{ index, selector: { kind: 'sourceAddress', value: identity.sourceAddress } }]
  })
}

function isSameWorkload(
  left: { readonly kind: string; readonly value: string },
  right: { readonly kind: string; readonly value: string },
): boolean {
  if (left.kind !== right.kind) return false
  if (left.value === right.value) return true
  // The cgroup match of iptables also matches descendants.
  return (
    left.kind === 'cgroup' &&
    (left.value.startsWith(`${right.value}/`) || right.value.startsWith(`${left.value}/`))
  )
}

interface PortUse {
  readonly ip: string
  readonly port: number
  readonly what: string
  readonly path: readonly (string | number)[]
  /** Whether an application, not hostmesh, listens there: a clash between two applications is not checked. */
  readonly isApplication: boolean
}

function portProblems(config: Config): ConfigProblem[] {
  const problems: ConfigProblem[] = []
  const uses = portUses(config)
  for (const use of uses)
    if (use.port > 65_535)
      problems.push({
        path: ['capture', 'basePort'],
        message: `Leaves no port for ${use.what}: it would be ${use.port}`,
      })
  const usesByPort = Map.groupBy(uses, (use) => use.port)
  for (const sharing of usesByPort.values())
    for (const [index, use] of sharing.entries()) {
      const rival = sharing.slice(0, index).find((other) => isClash(other, use))
      if (rival !== undefined)
        problems.push({
          path: use.path,
          message: `Port ${use.port} of ${use.what} clashes with ${rival.what} (${rival.path.join('.')})`,
        })
    }
  return problems
}

/** All sockets that hostmesh will listen on, in order of the file, then those of the applications. */
function portUses(config: Config): PortUse[] {
  const own = (what: string, ip: string, port: number, path: (string | number)[]): PortUse => ({
    what,
    ip,
    port,
    path,
    isApplication: false,
  })
  const uses: PortUse[] = [
    own('the tunnel', config.tunnel.address, config.tunnel.port, ['tunnel', 'port']),
  ]
  config.services.forEach(({ id, name, connectPort }, index) => {
    if (connectPort !== undefined)
      uses.push(
        own(`the tunnel port of ${id ?? name}`, config.tunnel.address, connectPort, [
          'services',
          index,
          'connectPort',
        ]),
      )
  })
  if (config.metrics.port !== undefined)
    uses.push(own('the metrics', config.metrics.address, config.metrics.port, ['metrics', 'port']))
  if (isDnsOn(config))
    uses.push(own('the resolver', config.dns.address, config.dns.port, ['dns', 'port']))
  // Diverted connections arrive at any address that the kernel picks: the port must be free on all addresses.
  for (const service of localServices(config))
    if (service.capturePort !== undefined)
      uses.push(
        own(`the capture of ${service.id}`, '::', service.capturePort, ['capture', 'basePort']),
      )
  for (const [index, service] of config.services.entries()) {
    for (const [position, upstream] of service.upstreams.entries())
      if (upstream.bindPort !== undefined)
        uses.push(
          own(
            `upstream ${upstream.destination} of ${service.id ?? service.name}`,
            upstream.bindAddress,
            upstream.bindPort,
            ['services', index, 'upstreams', position, 'bindPort'],
          ),
        )
    if (service.port !== undefined)
      uses.push({
        what: `the application of ${service.id ?? service.name}`,
        ip: service.address,
        port: service.port,
        path: ['services', index, 'port'],
        isApplication: true,
      })
  }
  return uses
}

function isClash(left: PortUse, right: PortUse): boolean {
  if (left.isApplication && right.isApplication) return false
  return covers(left.ip, right.ip) || covers(right.ip, left.ip)
}

/** Whether a socket bound to `bound` also takes connections to `ip`. `::` takes both families. */
function covers(bound: string, ip: string): boolean {
  return bound === ip || bound === '::' || (bound === '0.0.0.0' && !isIpv6(ip))
}

function captureProblems(config: Config): ConfigProblem[] {
  if (config.capture.mode === 'off') return []
  const problems: ConfigProblem[] = []
  const found = selectors(config)
  const host = hostIdentity(config)
  if (config.capture.unknownCallers !== 'refuse' && host === undefined)
    problems.push({
      path: ['capture', 'unknownCallers'],
      message: `No service of this host is called ${config.capture.unknownCallers}; name one of services, or write refuse`,
    })
  if (host !== undefined && config.capture.unknownToInstances === 'refuse')
    problems.push({
      path: ['capture', 'unknownToInstances'],
      message: `Unknown callers are taken for ${host.name}, so none is left to refuse; set capture.unknownCallers to refuse, or leave this out`,
    })
  const exempt = config.capture.daemonUser
  for (const { index, selector } of found)
    if (exempt !== undefined && selector.kind === 'user' && selector.value === String(exempt))
      problems.push({
        path: ['services', index, 'identity', 'user'],
        message: `User ${exempt} is capture.daemonUser and exempt from capture; run the service as another user`,
      })
  return problems
}

/** Blocks with addresses of real machines, or of none: capturing them would break the host. */
const RESERVED = [
  '0.0.0.0/8',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '224.0.0.0/4',
  '::/8',
  'fe80::/10',
  'ff00::/8',
]
  .map(parseCidr)
  .filter((cidr) => cidr !== undefined)

function rangeProblems(config: Config): ConfigProblem[] {
  return [
    ...oneRange(config, 'virtualRange', { bits: 32, minPrefix: 4, example: '240.0.0.0/4' }),
    ...oneRange(config, 'virtualRange6', {
      bits: 128,
      minPrefix: 32,
      example: 'fdc6:6d65:7368::/64',
    }),
  ]
}

function oneRange(
  config: Config,
  key: 'virtualRange' | 'virtualRange6',
  family: { readonly bits: number; readonly minPrefix: number; readonly example: string },
): ConfigProblem[] {
  const text = config.capture[key]
  const cidr = parseCidr(text)
  const problem = (message: string): ConfigProblem[] => [{ path: ['capture', key], message }]
  if (cidr === undefined || isIpv6(cidr.network) !== (family.bits === 128))
    return problem(
      `Must be an ${family.bits === 32 ? 'IPv4' : 'IPv6'} range such as ${family.example}, got "${text}"`,
    )
  if (canonicalIp(text.slice(0, text.indexOf('/'))) !== cidr.network)
    return problem(
      `${text} has bits beyond its prefix; did you mean ${cidr.network}/${cidr.prefix}?`,
    )
  if (cidr.prefix < family.minPrefix)
    return problem(
      `${text} is too wide: all of it is captured; use a prefix of /${family.minPrefix} or longer`,
    )
  if (cidrSize(cidr) < 16n)
    return problem(
      `${text} is too small for virtual addresses; use a prefix of /${family.bits - 4} or shorter`,
    )
  return rangeMembers(config, cidr).map((member) => ({
    path: ['capture', key],
    message: `${text} contains ${member}, and all of it is captured; choose a range that nothing uses`,
  }))
}

/** Real addresses in a range that must contain only virtual ones. */
function rangeMembers(config: Config, cidr: Cidr): string[] {
  const members = RESERVED.filter((block) => cidrsOverlap(block, cidr)).map(
    (block) => `addresses of ${block.network}/${block.prefix}`,
  )
  const addresses = new Map<string, string>()
  if (config.node.address !== undefined) addresses.set(config.node.address, 'node.address')
  for (const service of config.services)
    if (!isLoopback(service.address)) addresses.set(service.address, `service ${service.name}`)
  for (const [ip, what] of addresses) if (cidrContains(cidr, ip)) members.push(`${ip} (${what})`)
  return members
}

function adminProblems(config: Config): ConfigProblem[] {
  const bytes = new TextEncoder().encode(config.admin.socket).length
  if (bytes <= MAX_SOCKET_PATH_BYTES) return []
  return [
    {
      path: ['admin', 'socket'],
      message: `The path has ${bytes} bytes; a Unix socket takes at most ${MAX_SOCKET_PATH_BYTES}`,
    },
  ]
}
