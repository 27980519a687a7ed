/**
 * A real aggregator on a host of a test mesh, as the service `hostmesh-aggregator` of that host.
 */
import { mkdir, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import type { FleetDocuments } from '../../src/model/fleet.ts'
import { hostmesh } from './daemon.ts'
import { eventually } from './eventually.ts'
import type { Host } from './host.ts'
import type { Mesh } from './mesh.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Service } from './service.ts'

/** The service to which hosts report: a value for `reports.to`. */
export const AGGREGATOR = 'hostmesh-aggregator'

/** Where it takes reports: its default. */
const REPORT_PORT = 15_191

/** One aggregator. It can be stopped and started again with its database; it ends with its mesh. */
export class Aggregator {
  /** The unix socket of its API. */
  readonly socket: string
  readonly #mesh: Mesh
  readonly #host: Host
  readonly #folder: string
  readonly #service: Service
  #process: OwnedProcess | undefined

  /** Declares its service on a host, whose daemon must not run yet. */
  constructor(mesh: Mesh, host: Host) {
    this.#mesh = mesh
    this.#host = host
    this.#folder = join(mesh.folder, 'aggregator')
    this.socket = join(this.#folder, 'api.sock')
    this.#service = host.service(AGGREGATOR, { listens: REPORT_PORT, identity: 'none' })
  }

  /** Makes it known to the catalog and allows hosts to report to it, as an operator does once. */
  async join(): Promise<void> {
    await this.#service.join()
    await this.#mesh.allow('hostmesh', AGGREGATOR)
  }

  /** Starts it, and waits until it answers. */
  async start(): Promise<void> {
    await mkdir(this.#folder, { recursive: true })
    const config = join(this.#folder, 'aggregator.yaml')
    await writeFile(
      config,
      JSON.stringify({
        listen: { socket: this.socket },
        store: { directory: this.#folder, maxBytes: '64MiB' },
      }),
    )
    this.#process = await OwnedProcess.start(
      this.#host.namespace.inside([hostmesh, 'aggregator', '--config', config]),
      { name: 'aggregator' },
    )
    this.#mesh.own(this.#process)
    const program = this.#process
    await eventually(() => this.ask('overview'), { withinMs: 20_000 }).catch((cause: unknown) => {
      throw new Error(`The aggregator does not start: ${program.output}`, { cause })
    })
  }

  async stop(): Promise<void> {
    await this.#process?.stop()
  }

  /** Ends it with SIGKILL. */
  async kill(): Promise<void> {
    await this.#process?.kill()
  }

  /** A document of its API. */
  async ask<Name extends keyof FleetDocuments>(
    name: Name,
    query = '',
  ): Promise<FleetDocuments[Name]> {
    const { promise, resolve, reject } = Promise.withResolvers<string>()
    const asked = request(
      { socketPath: this.socket, path: `/api/v1/${name}${query}`, headers: { host: 'localhost' } },
      (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString()
          if (response.statusCode === 200) resolve(text)
          else reject(new Error(`${response.statusCode}: ${text}`))
        })
      },
    )
    asked.on('error', reject)
    asked.end()
    return JSON.parse(await promise)
  }

  /**
   * Connections from `source` to `destination` that one host has counted, in all of the past. Of one host, since its
   * records and those of the other side do not end at the same moment: a step may have one side alone.
   */
  async opened(source: string, destination: string, by: Host): Promise<number> {
    const to = new Date().toISOString()
    const from = new Date(Date.now() - 1_200_000).toISOString()
    const { series, stepMs } = await this.ask(
      'history',
      `?source=${source}&destination=${destination}&host=${by.name}&from=${from}&to=${to}&step=10s`,
    )
    const sum = series.openedPerSecond.reduce<number>((all, rate) => all + (rate ?? 0), 0)
    return Math.round((sum * stepMs) / 1_000)
  }
}
