/**
 * Converts the `services` section to the model. Assigns capture ports in file order, except where a port is in use or
 * cannot be opened.
 */
import type { LocalService, WorkloadSelector } from '../model/service.ts'
import type { Config } from './schema.ts'

/** The known use of this host's ports. */
export interface CapturePorts {
  /** Ports to which sockets of services are already bound, by service ID; no other service may get one of them. */
  readonly bound: ReadonlyMap<string, number>
  /** Whether no process uses a port. */
  readonly isFree: (port: number) => boolean
}

const ANY_PORT: CapturePorts = { bound: new Map(), isFree: () => true }

/**
 * The services of the host. Those with an identity, and the one that unknown callers are treated as, get capture ports
 * from `capture.basePort` up; for a port that is in use, the next usable one after all of these is taken.
 */
export function localServices(
  config: Config,
  ports: CapturePorts = ANY_PORT,
): readonly LocalService[] {
  const host = hostIdentity(config)
  const capturePorts = givePorts(
    config,
    config.services.filter((service) => service.identity !== undefined || service === host),
    ports,
  )
  return config.services.map((service): LocalService => {
    const selector = service.identity === undefined ? undefined : toSelector(service.identity)
    const capturePort = capturePorts.get(idOf(service))
    return {
      name: service.name,
      id: idOf(service),
      target: service.port === undefined ? undefined : { ip: service.address, port: service.port },
      delivery: { from: service.deliverFrom, proxyHeader: service.proxyProtocol === 'v2' },
      connectPort: service.connectPort,
      selector,
      capturePort,
      upstreams: service.upstreams.map((upstream) => ({
        destination: upstream.destination,
        bind:
          upstream.bindPort === undefined
            ? undefined
            : { ip: upstream.bindAddress, port: upstream.bindPort },
      })),
    }
  })
}

function idOf({ id, name }: Config['services'][number]): string {
  return id ?? name
}

function givePorts(
  config: Config,
  captured: Config['services'],
  { bound, isFree }: CapturePorts,
): ReadonlyMap<string, number> {
  const { basePort } = config.capture
  const given = new Map<string, number>()
  const taken = new Set(bound.values())
  for (const service of captured) {
    const port = bound.get(idOf(service))
    if (port !== undefined) given.set(idOf(service), port)
  }
  const others = portsOf(config)
  const isUsable = (port: number): boolean => !taken.has(port) && isFree(port)
  const spare = (): number | undefined => {
    for (let port = basePort + captured.length; port <= LAST_PORT; port += 1)
      if (!others.has(port) && isUsable(port)) return port
    return undefined
  }
  for (const [index, service] of captured.entries()) {
    if (given.has(idOf(service))) continue
    const first = basePort + index
    // If no port is left, opening the first choice reports why.
    const port = isUsable(first) ? first : (spare() ?? first)
    taken.add(port)
    given.set(idOf(service), port)
  }
  return given
}

/** The ports that the configuration uses for something else. */
function portsOf({ services, tunnel, metrics, dns }: Config): ReadonlySet<number | undefined> {
  return new Set([
    tunnel.port,
    metrics.port,
    dns.port,
    ...services.flatMap(({ port, connectPort, upstreams }) => [
      port,
      connectPort,
      ...upstreams.map(({ bindPort }) => bindPort),
    ]),
  ])
}

const LAST_PORT = 65_535

/** The service that local callers without an identity are treated as; undefined when they are refused. */
export function hostIdentity(config: Config): Config['services'][number] | undefined {
  const { unknownCallers } = config.capture
  if (unknownCallers === 'refuse') return undefined
  return config.services.find(({ name }) => name === unknownCallers)
}

function toSelector(
  identity: NonNullable<Config['services'][number]['identity']>,
): WorkloadSelector {
  if ('cgroup' in identity) return { kind: 'cgroup', path: identity.cgroup }
  if ('user' in identity) return { kind: 'user', user: String(identity.user) }
  return { kind: 'sourceAddress', ip: identity.sourceAddress }
}
