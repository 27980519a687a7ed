/**
 * The listening ports of this host, as a pure function of a worker's settings. The main thread opens their sockets and
 * a worker accepts from them, both by the names assigned here.
 */
import type { SocketAddress } from '../model/address.ts'
import type { WorkerSettings } from './protocol.ts'
import type { Listener } from './proxy/worker-context.ts'

/** A port for connections of local applications. */
export interface LocalListener extends Listener {
  readonly kind: 'capture' | 'upstream'
  /** Unique among all listeners of a host, and stable across restarts. */
  readonly name: string
}

/** A port for tunnels from other hosts. */
export interface TunnelListener {
  readonly kind: 'tunnel'
  readonly name: string
  readonly address: SocketAddress
  /** Services of this host that peers may ask for on this port. */
  readonly services: ReadonlySet<string>
}

/** The settings that determine the listeners. */
export type ListenerSettings = Pick<
  WorkerSettings,
  'services' | 'captures' | 'captureAddresses' | 'capturesTransparently' | 'tunnel'
>

/** The capture ports and explicit upstreams of all local services. */
export function localListeners(settings: ListenerSettings): readonly LocalListener[] {
  const { services, captures, captureAddresses, capturesTransparently } = settings
  return services.flatMap((service) => {
    const { capturePort } = service
    const captured: LocalListener[] =
      captures && capturePort !== undefined
        ? captureAddresses.map((ip) => ({
            kind: 'capture',
            name: named('capture', service.id, ip),
            caller: service.name,
            destination: undefined,
            capturedBy: capturesTransparently ? 'transparent' : 'redirect',
            address: { ip, port: capturePort },
          }))
        : []
    const explicit: LocalListener[] = service.upstreams.flatMap(({ bind, destination }) =>
      bind === undefined
        ? []
        : [
            {
              kind: 'upstream',
              name: named('upstream', service.id, bind.ip, String(bind.port)),
              caller: service.name,
              destination,
              capturedBy: undefined,
              address: bind,
            },
          ],
    )
    return [...captured, ...explicit]
  })
}

/** The host's tunnel port, and the tunnel ports of single services. */
export function tunnelListeners({ services, tunnel }: ListenerSettings): readonly TunnelListener[] {
  const called = services.filter(({ target }) => target !== undefined)
  return [
    {
      kind: 'tunnel',
      name: 'tunnel',
      address: tunnel,
      services: new Set(called.map(({ name }) => name)),
    },
    ...called.flatMap(({ name, id, connectPort }): TunnelListener[] =>
      connectPort === undefined
        ? []
        : [
            {
              kind: 'tunnel',
              name: named('tunnel', id),
              address: { ip: tunnel.ip, port: connectPort },
              services: new Set([name]),
            },
          ],
    ),
  ]
}

/** systemd allows no colon in the name of a descriptor; none of the parts contains a percent sign. */
function named(...parts: readonly string[]): string {
  return parts.join('/').replaceAll(':', '%3A')
}

/** The service ID in the name of a capture port's listener; undefined for another listener. */
export function capturedService(name: string): string | undefined {
  return /^capture\/([^/]+)\//.exec(name)?.[1]?.replaceAll('%3A', ':')
}
