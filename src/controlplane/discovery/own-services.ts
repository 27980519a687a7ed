/**
 * Whether the catalog lists this host's services as they are configured. Pure.
 *
 * A registration may come from an operator, from an earlier run or from a file. When it differs from the configuration,
 * callers connect elsewhere or not at all, and only this host can notice.
 */
import { formatAddress, isLoopback, type SocketAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import { Problem } from '../../model/problem.ts'
import type { LocalService } from '../../model/service.ts'
import type { MeshService } from '../../model/snapshot.ts'

/**
 * One problem for each service with a target that the catalog does not list as configured. Services without an answer
 * from the catalog so far are left out.
 */
export function ownServiceProblems(
  localServices: readonly LocalService[],
  nodeName: string,
  services: ReadonlyMap<string, MeshService>,
): readonly Problem[] {
  return localServices.flatMap((local) => {
    const service = services.get(local.name)
    if (local.target === undefined || service === undefined) return []
    const here = service.clusters
      .flatMap(({ endpoints }) => endpoints)
      .filter(({ node, service: name }) => node === nodeName && name === local.name)
    const endpoint = here.find(({ id }) => id === local.id)
    const problem =
      endpoint === undefined
        ? absence(local, here, service, nodeName)
        : difference(local, local.target, endpoint)
    return problem === undefined ? [] : [problem]
  })
}

function absence(
  { name, id }: LocalService,
  here: readonly Endpoint[],
  { clusters }: MeshService,
  nodeName: string,
): Problem | undefined {
  // If the traffic is routed to other services or to subsets, this host cannot judge it.
  const isElsewhere = clusters.some(
    ({ subset, endpoints }) =>
      subset !== undefined || endpoints.some((other) => other.service !== name),
  )
  if (here.length === 0 && isElsewhere) return undefined
  const others = [...new Set(here.map((other) => `"${other.id}"`))].join(', ')
  return new Problem(
    'HM_CATALOG_NOT_LISTED',
    `Service ${name} of this host is not in the catalog with Node ${nodeName} and ID "${id}"` +
      (others === '' ? '' : `: it is there with ID ${others}`),
    { subject: id },
  )
}

function difference(
  { name, id }: LocalService,
  target: SocketAddress,
  { key, health, application }: Endpoint,
): Problem | undefined {
  if (health === 'critical')
    return new Problem(
      'HM_CATALOG_CRITICAL',
      `Service ${name} of this host is critical in the catalog as ${key}: callers are sent elsewhere`,
      {
        subject: id,
        hint: `Start ${name} if nobody listens at ${formatAddress(target)} (ss -lnt); else hostmesh services ${name} shows which health check fails`,
      },
    )
  // For a container's own address, the port that others dial may well differ.
  if (application !== undefined && isLoopback(target.ip) && application.port !== target.port)
    return new Problem(
      'HM_CATALOG_NOT_LISTED',
      `Service ${name} of this host listens at port ${target.port}, and the catalog has it at port ${application.port} as ${key}`,
      { subject: id },
    )
  return undefined
}
