/**
 * `hostmesh services`: the services that this host knows, its local ones, and the instances of one service.
 */
import type { Command } from 'commander'
import { MeshError } from '../lib/errors.ts'
import type {
  EndpointEntry,
  LocalServiceEntry,
  ServiceEntry,
  ServicesDocument,
} from '../model/admin.ts'
import { type AdminOptions, adminCommand, fetchList, printJson } from './admin-command.ts'
import { formatAge } from './render/format.ts'
import { type Cell, renderTable, type Tone } from './render/table.ts'

/** The `services` command. */
export function servicesCommand(): Command {
  return adminCommand('services', 'List the services that this host knows, or the instances of one')
    .argument('[name]', 'show the instances of this service')
    .action(async (name: string | undefined, _options: unknown, command: Command) => {
      const { addr, output } = command.optsWithGlobals<AdminOptions>()
      const all = await fetchList<ServicesDocument>(addr, '/v1/services', 'services')
      const document = name === undefined ? all : only(all, name)
      if (output === 'json') printJson(document)
      else console.log(name === undefined ? renderServices(document) : renderService(document))
    })
}

function only(document: ServicesDocument, name: string): ServicesDocument {
  const services = document.services.filter((service) => service.name === name)
  const local = document.local.filter((service) => service.name === name)
  if (services.length + local.length === 0) {
    throw new MeshError(
      'HM_SERVICE_NOT_FOUND',
      `Cannot show service ${name}: this host does not know it`,
      {
        hint: 'A host knows the services it runs and those it names as upstreams',
      },
    )
  }
  return { services, local }
}

/** All services in two tables: those of the mesh, and those of this host. */
function renderServices(document: ServicesDocument): string {
  const mesh = renderTable(
    ['SERVICE', 'PROTOCOL', 'HEALTHY', 'VIRTUAL ADDRESS'],
    document.services.map((service) => [
      service.name,
      service.protocol,
      healthyShare(service),
      service.virtualIps.join(', ') || '-',
    ]),
  )
  const parts = [document.services.length === 0 ? 'This host knows no services of the mesh' : mesh]
  if (document.local.length > 0) parts.push(renderLocal(document.local))
  return parts.join('\n\n')
}

/** One service: its instances, and those of this host's configuration. */
function renderService(document: ServicesDocument): string {
  const parts = document.services.map((service) =>
    service.endpoints.length === 0
      ? `Service ${service.name} has no instances`
      : renderInstances(service),
  )
  if (document.local.length > 0) parts.push(renderLocal(document.local))
  return parts.join('\n\n')
}

/** The table of instances; each of the last two columns is left out when it is empty. */
function renderInstances({ name, datacenter, endpoints }: ServiceEntry): string {
  const hasRoles = endpoints.some(
    (endpoint) =>
      endpoint.service !== name || endpoint.datacenter !== datacenter || endpoint.priority !== 0,
  )
  const hasEjected = endpoints.some(({ ejected }) => ejected !== null)
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

function renderLocal(local: readonly LocalServiceEntry[]): string {
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
