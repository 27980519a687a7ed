/**
 * `hostmesh services`: the services that this host knows, its local ones, and the instances of one service.
 */
import type { Command } from 'commander'
import type {
  EndpointEntry,
  LocalServiceEntry,
  ServiceEntry,
  ServicesDocument,
} from '../model/admin.ts'
import { type AdminOptions, fetchList } from './admin-command.ts'
import type { Answer } from './answer.ts'
import { addFleetOptions } from './fleet-command.ts'
import { type FleetServicesOptions, fleetService, fleetServices } from './fleet-services.ts'
import { unknownName } from './known-names.ts'
import { readingCommand, show } from './reading-command.ts'
import { formatAge } from './render/format.ts'
import { type Cell, renderList, renderTable, type TableStyle, type Tone } from './render/table.ts'

interface Options extends AdminOptions, FleetServicesOptions {
  readonly fleet?: true
}

/** The `services` command. */
export function servicesCommand(): Command {
  const command = readingCommand(
    'services',
    'List the services that this host knows, or the instances of one',
  )
    .argument('[name]', 'show the instances of this service')
    .option('--fleet', 'ask the aggregator for the services of all hosts')
    .option('--host <name>', 'with --fleet: only services of this host')
  return addFleetOptions(command).action(
    async (name: string | undefined, _options: unknown, self: Command) => {
      const options = self.optsWithGlobals<Options>()
      await show(options, () => {
        if (options.fleet !== true) return localServices(options, name)
        return name === undefined ? fleetServices(options) : fleetService(options, name)
      })
    },
  )
}

async function localServices(options: Options, name: string | undefined): Promise<Answer> {
  const all = await fetchList<ServicesDocument>(options.addr, '/v1/services', 'services')
  const document = name === undefined ? all : only(all, name)
  return {
    document,
    text: (style) =>
      name === undefined ? renderServices(document, style) : renderService(document, style),
  }
}

function only(document: ServicesDocument, name: string): ServicesDocument {
  const services = document.services.filter((service) => service.name === name)
  const local = document.local.filter((service) => service.name === name)
  if (services.length + local.length > 0) return { services, local }
  throw unknownName('service', name, {
    known: [...document.services, ...document.local].map((service) => service.name),
    message: `Cannot show service ${name}: this host does not know it`,
    hint: 'A host knows the services it runs and those it names as upstreams',
  })
}

/** All services in two tables: those of the mesh, and those of this host. */
function renderServices(document: ServicesDocument, style: TableStyle): string {
  const mesh = renderList(
    [
      { heading: 'SERVICE', cell: (service) => service.name },
      { heading: 'DATACENTER', isWide: true, cell: (service) => service.datacenter },
      { heading: 'PROTOCOL', cell: (service) => service.protocol },
      { heading: 'HEALTHY', cell: healthyShare },
      { heading: 'VIRTUAL ADDRESS', cell: (service) => service.virtualIps.join(', ') || '-' },
    ],
    document.services,
    style,
  )
  const parts = [document.services.length === 0 ? 'This host knows no services of the mesh' : mesh]
  if (document.local.length > 0) parts.push(renderLocal(document.local, style))
  return parts.join('\n\n')
}

/** One service: its instances, and those of this host's configuration. */
function renderService(document: ServicesDocument, style: TableStyle): string {
  const parts = document.services.map((service) =>
    service.endpoints.length === 0
      ? `Service ${service.name} has no instances`
      : renderInstances(service, style),
  )
  if (document.local.length > 0) parts.push(renderLocal(document.local, style))
  return parts.join('\n\n')
}

/** The table of instances; each of the last two columns is left out when it is empty, unless all are wanted. */
function renderInstances({ name, datacenter, endpoints }: ServiceEntry, style: TableStyle): string {
  const hasRoles =
    style.isWide ||
    endpoints.some(
      (endpoint) =>
        endpoint.service !== name || endpoint.datacenter !== datacenter || endpoint.priority !== 0,
    )
  const hasEjected = style.isWide || endpoints.some(({ ejected }) => ejected !== null)
  const table = renderTable(
    [
      'INSTANCE',
      'NODE',
      'ADDRESS',
      'HEALTH',
      'LOCAL',
      ...(hasRoles ? ['SERVES AS'] : []),
      ...(hasEjected ? ['EJECTED'] : []),
    ],
    endpoints.map((endpoint) => [
      endpoint.id,
      endpoint.node,
      endpoint.address,
      { text: endpoint.health, tone: healthTone(endpoint.health) },
      endpoint.local ? 'yes' : '-',
      ...(hasRoles ? [roleOf(endpoint)] : []),
      ...(hasEjected ? [ejectionCell(endpoint.ejected)] : []),
    ]),
    style,
  )
  return [table, ...endpoints.flatMap(failureLines)].join('\n')
}

/** Why an instance fails its health check, if the catalog reports that. */
function failureLines({ id, node, health, failingCheck = null }: EndpointEntry): string[] {
  return failingCheck === null ? [] : [`${id} on ${node} is ${health}: ${failingCheck}`]
}

/** The service and datacenter of an instance, and whether it is only for failover. */
function roleOf(endpoint: EndpointEntry): string {
  const role = endpoint.priority === 0 ? '' : `, failover ${endpoint.priority}`
  return `${endpoint.service} in ${endpoint.datacenter}${role}`
}

function ejectionCell(ejected: EndpointEntry['ejected']): Cell {
  if (ejected === null) return '-'
  const { workers, ofWorkers, leftMs, reason } = ejected
  const by = ofWorkers === 1 ? '' : ` by ${workers}/${ofWorkers} workers`
  const until = leftMs === 0 ? 'until a connection succeeds' : `for ${formatAge(leftMs)} more`
  return { text: `${until}${by}: ${reason}`, tone: 'bad' }
}

function renderLocal(local: readonly LocalServiceEntry[], style: TableStyle): string {
  return renderTable(
    ['ON THIS HOST', 'LISTENS AT', 'IDENTITY', 'CAPTURE PORT', 'UPSTREAMS'],
    local.map((service) => [
      service.id === service.name ? service.name : `${service.name} (${service.id})`,
      service.target ?? '-',
      service.identity ?? '-',
      service.capturePort === null ? '-' : String(service.capturePort),
      service.upstreams
        .map(({ destination, bind }) => (bind === null ? destination : `${destination}=${bind}`))
        .join(', ') || '-',
    ]),
    style,
  )
}

function healthyShare(service: ServiceEntry): Cell {
  const total = service.endpoints.length
  const healthy = service.endpoints.filter((endpoint) => endpoint.health !== 'critical').length
  const text = `${healthy}/${total}`
  if (healthy === 0) return { text, tone: 'bad' }
  return healthy < total ? { text, tone: 'warning' } : { text, tone: 'good' }
}

function healthTone(health: EndpointEntry['health']): Tone {
  if (health === 'passing') return 'good'
  return health === 'warning' ? 'warning' : 'bad'
}
