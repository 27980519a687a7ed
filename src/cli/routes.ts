/**
 * `hostmesh routes`: where this host sends the connections to a service: clusters, splits, failover and their instances.
 */
import type { Command } from 'commander'
import type { ClusterEntry, EndpointEntry, RoutesDocument, ServiceRoutes } from '../model/admin.ts'
import { type AdminOptions, fetchList } from './admin-command.ts'
import { unknownName } from './known-names.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatShare } from './render/format.ts'
import { type Cell, type Column, renderList, type TableStyle } from './render/table.ts'

/** The `routes` command. */
export function routesCommand(): Command {
  return readingCommand(
    'routes',
    'List where connections to a service go: clusters, splits, failover, instances',
  )
    .argument('[service]', 'show only this service, with the instances of each cluster')
    .action(async (service: string | undefined, _options: unknown, command: Command) => {
      const options = command.optsWithGlobals<AdminOptions>()
      await show(options, async () => {
        const all = await fetchList<RoutesDocument>(options.addr, '/v1/routes', 'services')
        const document = service === undefined ? all : only(all, service)
        return {
          document,
          text: (style) => renderRoutes(document, style, service !== undefined),
          notes: document.services.flatMap(splitNotes),
        }
      })
    })
}

function only({ services }: RoutesDocument, name: string): RoutesDocument {
  const chosen = services.filter((service) => service.name === name)
  if (chosen.length > 0) return { services: chosen }
  throw unknownName('service', name, {
    known: services.map((service) => service.name),
    message: `Cannot show the routes of ${name}: this host does not know it`,
    hint: 'A host knows the services it runs and those it names as upstreams',
  })
}

/** One cluster of one service. */
interface Row {
  readonly service: ServiceRoutes
  readonly cluster: ClusterEntry
}

const columns: readonly Column<Row>[] = [
  { heading: 'SERVICE', cell: ({ service }) => service.name },
  { heading: 'PROTOCOL', isWide: true, cell: ({ service }) => service.protocol },
  { heading: 'CLUSTER', cell: ({ cluster }) => cluster.name },
  { heading: 'SUBSET', isWide: true, cell: ({ cluster }) => cluster.subset ?? '-' },
  { heading: 'SERVES AS', cell: ({ cluster }) => `${cluster.service} in ${cluster.datacenter}` },
  { heading: 'WEIGHT', cell: weightOf },
  { heading: 'USED', cell: ({ cluster }) => (cluster.isUsed ? 'yes' : 'no') },
  { heading: 'TIMEOUT', isWide: true, cell: ({ cluster }) => `${cluster.connectTimeoutMs}ms` },
  { heading: 'HEALTHY', cell: ({ cluster }) => healthyOf(cluster) },
  { heading: 'FAILOVER', cell: ({ cluster }) => failoverOf(cluster) },
]

const instanceColumns: readonly Column<Row & { readonly endpoint: EndpointEntry }>[] = [
  { heading: 'CLUSTER', cell: ({ cluster }) => cluster.name },
  { heading: 'PRIORITY', cell: ({ endpoint }) => priorityText(endpoint) },
  { heading: 'INSTANCE', cell: ({ endpoint }) => endpoint.id },
  { heading: 'NODE', cell: ({ endpoint }) => endpoint.node },
  { heading: 'ADDRESS', cell: ({ endpoint }) => (endpoint.local ? 'this host' : endpoint.address) },
  { heading: 'SERVES AS', cell: ({ endpoint }) => `${endpoint.service} in ${endpoint.datacenter}` },
  { heading: 'HEALTH', cell: ({ endpoint }) => healthCell(endpoint) },
  { heading: 'EJECTED', cell: ({ endpoint }) => endpoint.ejected?.reason ?? '-' },
]

function renderRoutes(
  { services }: RoutesDocument,
  style: TableStyle,
  hasInstances: boolean,
): string {
  if (services.length === 0) return 'This host knows no services of the mesh'
  const rows = services.flatMap((service) =>
    service.clusters.map((cluster) => ({ service, cluster })),
  )
  const table = renderList(columns, rows, style)
  if (!hasInstances) return table
  const instances = rows.flatMap((row) =>
    row.cluster.endpoints.map((endpoint) => ({ ...row, endpoint })),
  )
  const list =
    instances.length === 0
      ? 'No cluster has an instance'
      : renderList(instanceColumns, instances, style)
  return `${table}\n\n${list}`
}

/** The share of a cluster in the last route, which is the one for opaque bytes. */
function weightOf({ service, cluster }: Row): string {
  const shares = service.routes.at(-1)?.clusters ?? []
  const total = shares.reduce((sum, { weight }) => sum + weight, 0)
  const own = shares.find((share) => share.cluster === cluster.name)
  return own === undefined || total === 0 ? '-' : formatShare(own.weight / total)
}

/** Of its own instances, without those for failover. */
function healthyOf({ endpoints }: ClusterEntry): Cell {
  const counted = endpoints.filter(({ priority }) => priority === 0)
  const healthy = counted.filter(({ health }) => health !== 'critical').length
  const text = `${healthy}/${counted.length}`
  if (healthy === 0) return { text, tone: 'bad' }
  return { text, tone: healthy < counted.length ? 'warning' : 'good' }
}

function failoverOf(cluster: ClusterEntry): string {
  const targets = cluster.endpoints.filter(({ priority }) => priority > 0)
  const names = new Set(targets.map(({ service, datacenter }) => `${service} in ${datacenter}`))
  return [...names].join(', ') || '-'
}

function priorityText({ priority }: EndpointEntry): string {
  return priority === 0 ? '0' : `${priority} (failover)`
}

function healthCell({ health }: EndpointEntry): Cell {
  const tones = { passing: 'good', warning: 'warning', critical: 'bad' } as const
  return { text: health, tone: tones[health] }
}

/** A split is not followed for opaque bytes. */
function splitNotes({ name, routes, clusters }: ServiceRoutes): string[] {
  const shares = routes.at(-1)?.clusters.filter(({ weight }) => weight > 0) ?? []
  if (shares.length < 2) return []
  const used = clusters.find(({ isUsed }) => isUsed)?.name ?? name
  return [`Connections to ${name} are not split: all go to ${used}, because they are opaque bytes`]
}
