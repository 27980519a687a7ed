/**
 * One host of a test mesh: a network namespace, the services declared on it, and its daemon.
 */
import { join } from 'node:path'

import type { ConfigInput } from '../../src/config/schema.ts'
import { Daemon } from './daemon.ts'
import type { Mesh } from './mesh.ts'
import type { Namespace } from './network.ts'
import { Service, type ServiceOptions } from './service.ts'

/** First of the numeric users that services run as; no account of a Debian system is there. */
const FIRST_UID = 47_001

/** A host of the mesh. */
export class Host {
  readonly name: string
  readonly namespace: Namespace
  readonly daemon: Daemon
  readonly services: Service[] = []
  private readonly mesh: Mesh
  private sections: Partial<ConfigInput> = {}

  constructor(mesh: Mesh, name: string, namespace: Namespace) {
    this.mesh = mesh
    this.name = name
    this.namespace = namespace
    this.daemon = new Daemon(name, namespace, join(mesh.folder, `host-${name}`))
  }

  /** Declares a service, before the daemon is started: it is in the configuration. */
  service(name: string, options: ServiceOptions = {}): Service {
    if (this.daemon.isRunning)
      throw new Error(`The daemon of ${this.name} runs; declare ${name} before mesh.up()`)
    const user = FIRST_UID + this.services.length
    const service = new Service(this.mesh, this, name, { user, ...options })
    this.services.push(service)
    return service
  }

  /** A process of no mesh service, under a user of its own: what capture must leave alone. */
  stranger(options: Pick<ServiceOptions, 'container'> = {}): Service {
    return new Service(this.mesh, this, 'stranger', { user: FIRST_UID + 900, ...options })
  }

  /** Sections of this host's configuration that replace all others; call before mesh.up(). */
  configure(sections: Partial<ConfigInput>): void {
    this.sections = { ...this.sections, ...sections }
  }

  /** The configuration of the daemon, from what was declared. */
  config(): ConfigInput {
    const { options, catalog } = this.mesh
    return {
      node: { name: this.name },
      ...catalog.sections(this.name),
      services: this.services.map((service) => ({
        name: service.name,
        id: service.id,
        ...(service.options.listens !== undefined && { port: service.options.listens }),
        ...(service.options.connectPort !== undefined && {
          connectPort: service.options.connectPort,
        }),
        ...identityOf(service),
        ...service.options.delivery,
        upstreams: Object.entries(service.options.upstreams ?? {}).map(
          ([destination, bindPort]) => ({ destination, bindPort }),
        ),
      })),
      capture: { mode: options.capture ?? 'on' },
      workers: options.workers ?? 1,
      state: { directory: this.daemon.stateFolder },
      admin: { socket: this.daemon.socketPath },
      timeouts: { connect: '3s', handshake: '3s', keepalive: '2s', drain: '5s' },
      log: { level: 'info', format: 'json' },
      ...(typeof options.config === 'function' ? options.config(this.name) : options.config),
      ...this.sections,
    }
  }
}

function identityOf(
  service: Service,
): Pick<NonNullable<ConfigInput['services']>[number], 'identity'> {
  const { container } = service.options
  if (container !== undefined) return { identity: { sourceAddress: container.ip } }
  switch (service.options.identity ?? 'user') {
    case 'user':
      return { identity: { user: service.uid } }
    case 'cgroup':
      return { identity: { cgroup: service.cgroup ?? '' } }
    case 'none':
      return {}
  }
}
