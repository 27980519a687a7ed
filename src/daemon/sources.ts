/**
 * Opens the configured sources of this host: the catalog of the mesh and the certificates of its services.
 */
import type { Config } from '../config/schema.ts'
import type { Catalog } from '../controlplane/catalog/catalog.ts'
import { ConsulCatalog } from '../controlplane/catalog/consul/consul-catalog.ts'
import { createFileCatalog } from '../controlplane/catalog/file/file-catalog.ts'
import { createBuiltinSource } from '../controlplane/identity/builtin-ca.ts'
import type { CertificateSource } from '../controlplane/identity/certificate-source.ts'
import { createConsulSource } from '../controlplane/identity/consul-ca.ts'
import {
  createFilesSource,
  type FilesSourceOptions,
} from '../controlplane/identity/files-source.ts'
import { MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { HostState } from './memory.ts'

/** Opens the catalog; with `isStrict` an invalid catalog file is rejected, without it the kept content is used. */
export function openCatalog(
  config: Config,
  log: Log,
  {
    node,
    memory,
    isStrict,
  }: { readonly node: string; readonly memory: HostState; readonly isStrict: boolean },
): Catalog | ConsulCatalog {
  if (config.catalog.kind === 'file') {
    const state = memory.catalogFile()
    return createFileCatalog(
      { path: config.catalog.path, node, state, isStrict },
      log.child('catalog'),
    )
  }
  const { address, port } = config.metrics
  return new ConsulCatalog(
    {
      ...config.catalog,
      node: config.node.name,
      nodeAddress: config.node.address,
      metrics: port === undefined ? undefined : { ip: address, port },
      datacenter: config.datacenter,
    },
    log.child('consul'),
  )
}

/** Opens the source of certificates. @throws MeshError HM_CONFIG_INVALID */
export function openCertificates(
  config: Config,
  catalog: Catalog | ConsulCatalog,
  node: string,
  parentLog: Log,
): CertificateSource {
  const { certificates, datacenter } = config
  const log = parentLog.child('certificates')
  if (certificates.kind === 'files')
    return createFilesSource({ files: fileLayout(certificates), log, datacenter })
  if (certificates.kind === 'builtin')
    return createBuiltinSource({ ...certificates, host: node, log, datacenter })
  if (!('follower' in catalog))
    throw new MeshError(
      'HM_CONFIG_INVALID',
      'Cannot take certificates from Consul: catalog.kind is not consul',
    )
  return createConsulSource({ follower: catalog.follower, log, datacenter })
}

function fileLayout(
  certificates: Extract<Config['certificates'], { kind: 'files' }>,
): FilesSourceOptions['files'] {
  const { directory, certificate, key, roots, trustDomain } = certificates
  if (directory !== undefined) return { directory }
  if (certificate !== undefined && key !== undefined && roots !== undefined)
    return { certificate, key, roots, trustDomain }
  throw new MeshError('HM_CONFIG_INVALID', 'Cannot find certificates: no directory and no paths')
}
