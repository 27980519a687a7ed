/**
 * From the `services` section to the model: capture ports are given out here, in file order.
 */
import type { LocalService, WorkloadSelector } from '../model/service.ts'
import type { Config } from './schema.ts'

/**
 * The host's services. Services with an identity, and the one that unknown callers are taken for, get the
 * capture ports from `capture.basePort` up.
 */
export function localServices(config: Config): readonly LocalService[] {
  let nextPort = config.capture.basePort
  const host = hostIdentity(config)
  return config.services.map((service): LocalService => {
    const selector = service.identity === undefined ? undefined : toSelector(service.identity)
    const capturePort = selector === undefined && service !== host ? undefined : nextPort
    if (capturePort !== undefined) nextPort += 1
    return {
      name: service.name,
      id: service.id ?? service.name,
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

/** The service that local callers without an identity are taken for; undefined when they are refused. */
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
