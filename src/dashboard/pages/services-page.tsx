/**
 * All services with their golden signals.
 */
import type { ComponentChild } from 'preact'

import type { ServiceSummary } from '../../model/fleet.ts'
import { formatByteRate, formatCount, formatLatency, formatRate, plural } from '../format.ts'
import { view } from '../location.ts'
import { FindBox } from '../parts/find-box.tsx'
import { ErrorShare } from '../parts/pairs.tsx'
import { type Column, Table } from '../parts/table.tsx'
import { Empty, Health, HostLink, Names, Notes, ServiceLink, Waiting } from '../parts/words.tsx'
import { useDocument } from '../use-document.ts'
import { isWanted, useQuery } from './query.ts'

const healthOrder = { failing: 0, degraded: 1, unknown: 2, healthy: 3 } as const

const columns: readonly Column<ServiceSummary>[] = [
  {
    key: 'name',
    title: 'Service',
    sortBy: ({ name }) => name,
    cell: ({ name }) => <ServiceLink name={name} />,
  },
  {
    key: 'health',
    title: 'Health',
    width: 14,
    sortBy: ({ health }) => healthOrder[health],
    cell: ({ health, reasons }) => <Health health={health} reasons={reasons} />,
  },
  {
    key: 'instances',
    title: 'Instances',
    width: 11,
    isNumber: true,
    sortBy: ({ instances }) => instances,
    cell: ({ instances }) => formatCount(instances),
  },
  {
    key: 'rate',
    title: 'Opened',
    hint: 'Connections to the service, opened a second',
    isNumber: true,
    sortBy: ({ inbound }) => inbound.openedPerSecond,
    cell: ({ inbound }) => formatRate(inbound.openedPerSecond),
  },
  {
    key: 'active',
    title: 'Open',
    isNumber: true,
    sortBy: ({ inbound }) => inbound.active,
    cell: ({ inbound }) => formatCount(inbound.active),
  },
  {
    key: 'errors',
    title: 'Failed',
    hint: 'Share of ended connections that the mesh or the instance failed',
    isNumber: true,
    sortBy: ({ inbound }) => inbound.errorShare,
    cell: ({ inbound }) => <ErrorShare traffic={inbound} />,
  },
  {
    key: 'connect',
    title: 'Connect p99',
    isNumber: true,
    sortBy: ({ inbound }) => inbound.connectMs?.p99 ?? null,
    cell: ({ inbound }) => formatLatency(inbound.connectMs?.p99),
  },
  {
    key: 'firstbyte',
    title: 'First byte p99',
    isNumber: true,
    sortBy: ({ inbound }) => inbound.firstByteMs?.p99 ?? null,
    cell: ({ inbound }) => formatLatency(inbound.firstByteMs?.p99),
  },
  {
    key: 'bytes',
    title: 'Bytes',
    hint: 'Sent and received a second',
    isNumber: true,
    sortBy: ({ inbound }) => inbound.sentBytesPerSecond + inbound.receivedBytesPerSecond,
    cell: ({ inbound }) =>
      formatByteRate(inbound.sentBytesPerSecond + inbound.receivedBytesPerSecond),
  },
  {
    key: 'callers',
    title: 'Callers',
    isNumber: true,
    sortBy: ({ callers }) => callers,
    cell: ({ callers }) => formatCount(callers),
  },
  {
    key: 'destinations',
    title: 'Calls',
    hint: 'Services that it calls',
    isNumber: true,
    sortBy: ({ destinations }) => destinations,
    cell: ({ destinations }) => formatCount(destinations),
  },
  {
    key: 'hosts',
    title: 'Hosts',
    sortBy: ({ hosts }) => hosts.length,
    cell: ({ hosts }) => <Names names={hosts} most={2} link={(name) => <HostLink name={name} />} />,
  },
]

/** The page. */
export function ServicesPage(): ComponentChild {
  const loaded = useDocument('services', useQuery())
  const { document } = loaded
  const rows = document?.services.filter(({ name }) => isWanted(name)) ?? []
  const hasText = (view.value.params['find'] ?? '') !== ''
  return (
    <main class={`page${loaded.isOld && document !== null ? ' old' : ''}`}>
      <div class="head">
        <h1>Services</h1>
        {document !== null && (
          <span class="faint">{plural(document.services.length, 'service')}</span>
        )}
        <FindBox found={hasText ? rows.length : null} />
      </div>
      <Waiting loaded={loaded} what="the services" />
      {document !== null && <Notes coverage={document.coverage} />}
      {document !== null &&
        (rows.length === 0 ? (
          <Empty
            title={hasText ? 'No service has this name' : 'No services'}
            {...(hasText ? {} : { coverage: document.coverage })}
            otherwise={
              hasText
                ? 'Shorten the text in find.'
                : 'Hosts report, and none of them has a service.'
            }
          />
        ) : (
          <Table
            caption="Services"
            isCaptionHidden
            columns={columns}
            rows={rows}
            keyOf={({ name }) => name}
            sort="-rate"
            param="sort"
          />
        ))}
    </main>
  )
}
