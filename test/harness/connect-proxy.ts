/**
 * Consul's own proxy (`consul connect proxy`) as a service's sidecar, on a host without a daemon: the smallest
 * member of a mesh that is not hostmesh.
 */
import type { Mesh } from './mesh.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Service } from './service.ts'

/** Where it takes connections from the mesh, as Consul's sidecars do. */
const PUBLIC_PORT = 21_000

/**
 * Starts the proxy of a service that listens, registered with its host's agent; it ends with the mesh.
 * @param upstreams local ports that lead to other services, by name
 */
export async function startConnectProxy(
  mesh: Mesh,
  service: Service,
  upstreams: Readonly<Record<string, number>>,
): Promise<void> {
  const { namespace } = service.host
  const { listens } = service.options
  if (listens === undefined) throw new Error(`${service.name} listens on no port`)
  const proxy = await OwnedProcess.start(
    namespace.inside([
      'consul',
      'connect',
      'proxy',
      '-register',
      '-service',
      service.name,
      '-service-addr',
      `127.0.0.1:${listens}`,
      '-listen',
      `${namespace.ip}:${PUBLIC_PORT}`,
      ...Object.entries(upstreams).flatMap(([name, port]) => ['-upstream', `${name}:${port}`]),
      '-log-level',
      'info',
    ]),
    { name: 'consul connect proxy' },
  )
  mesh.own(proxy)
}
