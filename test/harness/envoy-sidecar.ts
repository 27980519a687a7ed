/**
 * A real Envoy as a service's sidecar, set up by `consul connect envoy` and configured by the Consul agent of
 * its host: what a fleet runs before hostmesh comes, and beside it.
 *
 * The Consul and the Envoy are those on the PATH: `npm run test:interop` puts current ones there. The agent
 * needs its gRPC port: `startMesh({ catalog: 'consul', consul: FOR_ENVOYS })`.
 */
import { join } from 'node:path'
import { eventually } from './eventually.ts'
import type { Mesh } from './mesh.ts'
import type { Namespace } from './network.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Service } from './service.ts'

/** Where the agents of a mesh give Envoys their configuration. */
const ENVOY_CONFIG_PORT = 8502

/** For `startMesh`: agents that can configure Envoys. */
export const FOR_ENVOYS: Readonly<Record<string, unknown>> = {
  ports: { dns: -1, grpc: ENVOY_CONFIG_PORT },
}

/** First of the ports on which sidecars take connections from the mesh, as in Consul itself. */
const FIRST_PUBLIC_PORT = 21_000

/** First of the ports of Envoy's admin interfaces, on loopback. */
const FIRST_ADMIN_PORT = 19_000

/** What a sidecar is known by. */
export interface SidecarOptions {
  /** Different for each sidecar of a host; its ports follow from it. */
  readonly number: number
  /** Local ports that lead to other services. */
  readonly upstreams?: Readonly<Record<string, number>>
}

/**
 * A service with a sidecar as operators write it down: a service definition with `connect.sidecar_service`,
 * for a file or for the API.
 */
export function definitionWithSidecar(service: Service, sidecar: SidecarOptions): object {
  const { ip } = service.host.namespace
  return {
    ...plainDefinition(service),
    Connect: {
      SidecarService: {
        Address: ip,
        Port: FIRST_PUBLIC_PORT + sidecar.number,
        Checks: [
          {
            Name: 'Connect Sidecar Listening',
            TCP: `${ip}:${FIRST_PUBLIC_PORT + sidecar.number}`,
            Interval: '1s',
          },
          { Name: 'Connect Sidecar Aliasing', AliasService: service.id },
        ],
        Proxy: {
          Upstreams: Object.entries(sidecar.upstreams ?? {}).map(([destination, port]) => ({
            DestinationName: destination,
            LocalBindPort: port,
          })),
        },
      },
    },
  }
}

/** The same service without its sidecar. */
export function plainDefinition(service: Service): object {
  return {
    Name: service.name,
    ID: service.id,
    Address: service.host.namespace.ip,
    Port: service.options.listens ?? 0,
  }
}

/** A running sidecar. */
export class EnvoySidecar implements AsyncDisposable {
  private readonly process: OwnedProcess
  private readonly namespace: Namespace
  private readonly admin: string

  private constructor(process: OwnedProcess, namespace: Namespace, admin: string) {
    this.process = process
    this.namespace = namespace
    this.admin = admin
  }

  /** Starts the sidecar of a service whose definition has one, and waits until Envoy has its configuration. */
  static async start(mesh: Mesh, service: Service, number: number): Promise<EnvoySidecar> {
    const { namespace } = service.host
    const admin = `127.0.0.1:${FIRST_ADMIN_PORT + number}`
    const envoy = join(import.meta.dirname, '../../.cache/interop/bin/envoy')
    const owned = await OwnedProcess.start(
      namespace.inside([
        'consul',
        'connect',
        'envoy',
        '-sidecar-for',
        service.id,
        '-grpc-addr',
        `http://127.0.0.1:${ENVOY_CONFIG_PORT}`,
        '-envoy-binary',
        envoy,
        '-ignore-envoy-compatibility',
        '-admin-bind',
        admin,
        '--',
        '--concurrency',
        '1',
        '--log-level',
        'warning',
      ]),
      { name: `Envoy of ${service.id}` },
    )
    const sidecar = new EnvoySidecar(owned, namespace, admin)
    mesh.own(sidecar)
    await eventually(
      async () => {
        if (owned.hasExited) return
        const listeners = await sidecar.ask('GET', '/listeners')
        if (!listeners.includes('public_listener'))
          throw new Error(
            `Envoy of ${service.id} has no configuration yet; it says\n${owned.output}`,
          )
      },
      { withinMs: 60_000, everyMs: 200 },
    )
    if (owned.hasExited) throw new Error(`${owned.name} ended at its start:\n${owned.output}`)
    return sidecar
  }

  get pid(): number {
    return this.process.pid
  }

  /** Everything it logged. */
  get log(): string {
    return this.process.output
  }

  /** Asks Envoy's admin interface. @throws when it answers with an error. */
  async ask(method: 'GET' | 'POST', path: string): Promise<string> {
    return this.namespace.run(
      'curl',
      '-sS',
      '-m',
      '10',
      '-X',
      method,
      `http://${this.admin}${path}`,
    )
  }

  /** One of Envoy's statistics, summed over all names that match. */
  async stat(name: RegExp): Promise<number> {
    const text = await this.ask('GET', '/stats')
    return text
      .split('\n')
      .map((line) => line.split(': '))
      .filter(([key = '']) => name.test(key))
      .reduce((sum, [, value]) => sum + Number(value), 0)
  }

  /** Serial numbers of the certificates in use, as Envoy prints them. */
  async serials(): Promise<ReadonlySet<string>> {
    const { certificates } = JSON.parse(await this.ask('GET', '/certs')) as {
      certificates: { cert_chain?: { serial_number: string }[] }[]
    }
    return new Set(
      certificates.flatMap(({ cert_chain = [] }) => cert_chain.map((one) => one.serial_number)),
    )
  }

  /** Stops it, as systemd stops its unit. */
  async stop(): Promise<void> {
    await this.process.stop()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.process.hasExited) await this.process.kill()
  }
}
