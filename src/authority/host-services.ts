/**
 * Looks up for the CA which services a host runs, in a catalog: a file, or Consul.
 */
import { z } from 'zod'
import {
  type ConsulAddress,
  createTransport,
  requireOk,
} from '../controlplane/catalog/consul/transport.ts'
import { createFileCatalog } from '../controlplane/catalog/file/file-catalog.ts'
import type { Log } from '../lib/log.ts'
import type { RunsService } from './certificate-authority.ts'

/** Where the CA looks up the services of a host. */
export type CaCatalog =
  | { readonly kind: 'file'; readonly path: string }
  | ({ readonly kind: 'consul' } & ConsulAddress)

/** An open catalog. */
export interface HostServices extends AsyncDisposable {
  readonly runsService: RunsService
}

/** A host requests the certificates of all its services at its start: one query to Consul is enough for them. */
const CACHE_MS = 2_000
const MAX_CACHED_HOSTS = 1_000

const service = z.object({
  Service: z.string(),
  Kind: z.string().optional(),
  Proxy: z.object({ DestinationServiceName: z.string().optional() }).nullish(),
})
const nodeAnswer = z.object({ Services: z.record(z.string(), service).nullable() }).nullable()

/** Opens the catalog. @throws MeshError HM_CATALOG_INVALID, HM_CONSUL_ADDRESS_INVALID and as createTransport */
export function openHostServices(catalog: CaCatalog, log: Log): HostServices {
  return catalog.kind === 'file' ? fromFile(catalog.path, log) : fromConsul(catalog)
}

function fromFile(path: string, log: Log): HostServices {
  const catalog = createFileCatalog({ path, node: '' }, log)
  return {
    runsService: (host, name) =>
      new Promise((resolve) => {
        const watch = catalog.watchService(name, ({ clusters }) => {
          watch[Symbol.dispose]()
          resolve(clusters[0].endpoints.some(({ node }) => node === host))
        })
      }),
    [Symbol.asyncDispose]: () => catalog[Symbol.asyncDispose](),
  }
}

function fromConsul(address: ConsulAddress): HostServices {
  const transport = createTransport(address)
  const cache = new Map<string, { readonly atMs: number; readonly names: Promise<Set<string>> }>()

  async function ask(host: string): Promise<Set<string>> {
    const path = `/v1/catalog/node/${encodeURIComponent(host)}`
    const answer = requireOk(await transport.call('GET', path), `the services of ${host}`)
    const services = Object.values(nodeAnswer.parse(answer.body ?? null)?.Services ?? {})
    return new Set(
      // The application itself, and the service of its mesh proxy: either may be registered first.
      services.flatMap(({ Service, Kind = '', Proxy }) =>
        Kind === '' ? Service : (Proxy?.DestinationServiceName ?? []),
      ),
    )
  }

  return {
    async runsService(host, name) {
      const nowMs = performance.now()
      const known = cache.get(host)
      if (known !== undefined && nowMs - known.atMs < CACHE_MS) return (await known.names).has(name)
      const names = ask(host)
      cache.delete(host)
      cache.set(host, { atMs: nowMs, names })
      const [oldest] = cache.keys()
      if (cache.size > MAX_CACHED_HOSTS && oldest !== undefined) cache.delete(oldest)
      try {
        return (await names).has(name)
      } catch (thrown) {
        cache.delete(host)
        throw thrown
      }
    },
    async [Symbol.asyncDispose]() {
      transport[Symbol.dispose]()
    },
  }
}
