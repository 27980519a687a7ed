/**
 * `hostmesh services --fleet`: the services of all hosts, as the aggregator knows them.
 */
import type { FleetServiceDocument, InstanceEntry, ServiceSummary } from '../model/fleet.ts'
import type { Answer } from './answer.ts'
import { edgeColumns } from './edge-columns.ts'
import { fetchFleet } from './fleet-client.ts'
import {
  coverageNotes,
  errorCell,
  type FleetOptions,
  quantileText,
  stateCell,
} from './fleet-command.ts'
import { unknownName } from './known-names.ts'
import { formatRate } from './render/format.ts'
import { type Column, paint, renderList, renderTable, type TableStyle } from './render/table.ts'

/** The options of `services --fleet`. */
export interface FleetServicesOptions extends FleetOptions {
  readonly host?: string
}

/** All services, or those of one host. @throws MeshError as `fetchFleet`, HM_HOST_NOT_FOUND */
export async function fleetServices(options: FleetServicesOptions): Promise<Answer> {
  const { host } = options
  const all = await fetchFleet(options, 'services')
  const services = all.services.filter(({ hosts }) => host === undefined || hosts.includes(host))
  if (host !== undefined && services.length === 0) {
    const { hosts } = await fetchFleet(options, 'hosts')
    const known = hosts.map(({ name }) => name)
    if (!known.includes(host))
      throw unknownName('host', host, {
        known,
        message: `Cannot show services of host ${host}: the aggregator has no report of it`,
        hint: 'See what there is: hostmesh fleet hosts',
      })
  }
  return {
    document: { ...all, services },
    text: (style) => (services.length === 0 ? '' : renderList(serviceColumns, services, style)),
    notes: [
      ...(services.length === 0 ? ['No service was reported'] : []),
      ...coverageNotes(all.coverage),
    ],
  }
}

/** One service. @throws MeshError as `fetchFleet`, HM_SERVICE_NOT_FOUND */
export async function fleetService(options: FleetServicesOptions, name: string): Promise<Answer> {
  const { services } = await fetchFleet(options, 'services')
  const known = services.map((service) => service.name)
  if (!known.includes(name))
    throw unknownName('service', name, {
      known,
      message: `Cannot show service ${name}: no host has reported it`,
      hint: 'See what there is: hostmesh services --fleet',
    })
  const document = await fetchFleet(options, 'service', { name })
  return {
    document,
    text: (style) => renderService(document, style),
    notes: coverageNotes(document.coverage),
  }
}

const serviceColumns: readonly Column<ServiceSummary>[] = [
  { heading: 'SERVICE', cell: ({ name }) => name },
  { heading: 'PROTOCOL', isWide: true, cell: ({ protocol }) => protocol },
  { heading: 'HEALTH', cell: ({ health }) => stateCell(health) },
  { heading: 'INSTANCES', cell: ({ instances }) => String(instances) },
  { heading: 'CONN/S', cell: ({ inbound }) => formatRate(inbound.openedPerSecond) },
  { heading: 'ERRORS', cell: ({ inbound }) => errorCell(inbound) },
  { heading: 'CONNECT P50/P99', cell: ({ inbound }) => quantileText(inbound.connectMs) },
  {
    heading: 'FIRST BYTE P50/P99',
    isWide: true,
    cell: ({ inbound }) => quantileText(inbound.firstByteMs),
  },
  { heading: 'CALLERS', cell: ({ callers }) => String(callers) },
  { heading: 'CALLS', isWide: true, cell: ({ destinations }) => String(destinations) },
  { heading: 'HOSTS', cell: ({ hosts }) => hosts.join(', ') || '-' },
]

const instanceColumns: readonly Column<InstanceEntry>[] = [
  { heading: 'INSTANCE', cell: ({ id }) => id },
  { heading: 'HOST', cell: ({ host }) => host },
  { heading: 'HOST IS', cell: ({ hostState }) => stateCell(hostState) },
  { heading: 'LISTENS AT', cell: ({ target }) => target ?? '-' },
  { heading: 'HEALTH', cell: ({ health }) => (health === null ? '-' : stateCell(health)) },
  { heading: 'CERTIFICATE UNTIL', cell: ({ certificateNotAfter }) => certificateNotAfter ?? '-' },
]

function renderService(document: FleetServiceDocument, style: TableStyle): string {
  const { service, instances, callers, destinations, policy } = document
  const { defaultAction, intentions } = policy
  const rules = renderTable(
    ['INTENTION', 'ACTION', 'PRECEDENCE', 'USED'],
    [
      ...intentions.map((rule) => [
        `${rule.source} -> ${rule.destination}`,
        rule.action,
        String(rule.precedence),
        rule.used === null ? '-' : String(rule.used),
      ]),
      ...(defaultAction === null ? [] : [['default policy', defaultAction, '-', '-']]),
    ],
    style,
  )
  return [
    renderList(serviceColumns, [service], style),
    ...(service.reasons.length === 0
      ? []
      : [service.reasons.map((text) => `  ${paint({ text, tone: 'warning' })}`).join('\n')]),
    ...(instances.length === 0 ? [] : [renderList(instanceColumns, instances, style)]),
    ...(callers.length === 0 ? [] : [renderList(edgeColumns, callers, style)]),
    ...(destinations.length === 0 ? [] : [renderList(edgeColumns, destinations, style)]),
    rules,
  ].join('\n\n')
}
