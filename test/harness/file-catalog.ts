/**
 * The file catalog and the CA of a test: one catalog.yaml for all hosts, replaced by rename as an
 * operator's tool would, and certificates issued by `hostmesh ca`.
 */
import { mkdir, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { stringify } from 'yaml'

import type { ConfigInput } from '../../src/config/schema.ts'
import { hostmesh } from './daemon.ts'
import { mustRun } from './owned-process.ts'
import type { Instance, TestCatalog } from './test-catalog.ts'

/** Port where every host of a test takes tunnels: the default. */
export const TUNNEL_PORT = 15_443

/** Trust domain of our own CA in tests. */
export const TRUST_DOMAIN = 'test.hostmesh.internal'

/** A change to one entry of the catalog file that the ordinary calls cannot make. */
export interface InstanceEntry {
  Node: string
  ID: string
  Address: string
  Port: number
  ServiceAddress: string
  ServicePort: number
  Status: 'passing' | 'warning' | 'critical'
  Weight: number
}

/** One catalog file and one CA for all hosts. */
export class FileCatalog implements TestCatalog {
  readonly path: string
  readonly caFolder: string
  private readonly folder: string
  private readonly numbers = new Map<string, number>()
  private readonly entries = new Map<string, { service: string; entry: InstanceEntry }>()
  private readonly intentions = new Map<string, 'allow' | 'deny'>()
  private readonly issued = new Set<string>()
  private writing: Promise<void> = Promise.resolve()

  private constructor(folder: string) {
    this.folder = folder
    this.path = join(folder, 'catalog.yaml')
    this.caFolder = join(folder, 'ca')
  }

  static async create(folder: string): Promise<FileCatalog> {
    const catalog = new FileCatalog(folder)
    await catalog.write()
    await mustRun([
      hostmesh,
      'ca',
      'init',
      '--directory',
      catalog.caFolder,
      '--trust-domain',
      TRUST_DOMAIN,
    ])
    return catalog
  }

  sections(host: string): Pick<ConfigInput, 'catalog' | 'certificates'> {
    return {
      catalog: { kind: 'file', path: this.path },
      certificates: { kind: 'files', directory: this.certificateFolder(host) },
    }
  }

  /** Where a host finds its certificates. */
  certificateFolder(host: string): string {
    return join(this.folder, `certificates-${host}`)
  }

  async prepare(host: string, services: readonly string[]): Promise<void> {
    await mkdir(this.certificateFolder(host), { recursive: true, mode: 0o700 })
    const missing = services.filter((service) => !this.issued.has(`${host}/${service}`))
    if (missing.length === 0) return
    await issueLeaves(this.caFolder, missing, this.certificateFolder(host))
    for (const service of missing) this.issued.add(`${host}/${service}`)
  }

  async join(instance: Instance): Promise<void> {
    const { service, id, host, ip, port } = instance
    if (!this.numbers.has(service)) this.numbers.set(service, this.numbers.size + 1)
    const entry: InstanceEntry = {
      Node: host,
      ID: id,
      Address: ip,
      Port: TUNNEL_PORT,
      ServiceAddress: ip,
      ServicePort: port,
      Status: 'passing',
      Weight: 1,
    }
    this.entries.set(`${host}/${id}`, { service, entry })
    await this.write()
  }

  async leave(instance: Instance): Promise<void> {
    this.entries.delete(`${instance.host}/${instance.id}`)
    await this.write()
  }

  /** Overwrites fields of one entry: a wrong address, a failing check, another weight. */
  async amend(host: string, id: string, change: Partial<InstanceEntry>): Promise<void> {
    const found = this.entries.get(`${host}/${id}`)
    if (found === undefined) throw new Error(`No instance ${id} on ${host} in the catalog file`)
    this.entries.set(`${host}/${id}`, { ...found, entry: { ...found.entry, ...change } })
    await this.write()
  }

  async setIntention(source: string, destination: string, action: 'allow' | 'deny'): Promise<void> {
    this.intentions.set(`${source} ${destination}`, action)
    await this.write()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Its files lie in the mesh's folder, which the mesh removes.
  }

  /** Writes one after the other, whoever asks at the same time. */
  private async write(): Promise<void> {
    this.writing = this.writing.then(() => this.replaceFile())
    await this.writing
  }

  private async replaceFile(): Promise<void> {
    const services = [...this.numbers].map(([name, number]) => ({
      Name: name,
      Protocol: 'tcp',
      VirtualAddresses: [`240.88.0.${number}`, `fdc6:6d65:7368::${number.toString(16)}`],
      Instances: [...this.entries.values()]
        .filter(({ service }) => service === name)
        .map(({ entry }) => entry),
    }))
    const intentions = [...this.intentions].map(([pair, Action]) => {
      const [SourceName, DestinationName] = pair.split(' ')
      return { SourceName, DestinationName, Action }
    })
    await writeFile(`${this.path}.new`, stringify({ defaultPolicy: 'deny', services, intentions }))
    await rename(`${this.path}.new`, this.path)
  }
}

/** Has a CA issue the certificates of some services into a host's folder. */
export async function issueLeaves(
  caFolder: string,
  services: readonly string[],
  folder: string,
): Promise<void> {
  await mustRun([
    hostmesh,
    'ca',
    'issue',
    '--directory',
    caFolder,
    '--datacenter',
    'dc1',
    '--out',
    folder,
    '--service',
    ...new Set(services),
  ])
}
