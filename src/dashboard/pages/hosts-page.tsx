/**
 * All hosts: state, version, clock, problems, cost.
 */
import type { ComponentChild } from 'preact'

import type { HostEntry } from '../../model/fleet.ts'
import { nowMs } from '../clock.ts'
import { formatAge, formatBytes, formatCores, formatCount, plural, UNKNOWN } from '../format.ts'
import { view } from '../location.ts'
import { FindBox } from '../parts/find-box.tsx'
import { type Column, Table } from '../parts/table.tsx'
import {
  Badge,
  Empty,
  HostLink,
  HostState,
  Names,
  Notes,
  ServiceLink,
  Waiting,
} from '../parts/words.tsx'
import { useDocument } from '../use-document.ts'
import { isWanted, useQuery } from './query.ts'

/** A record that came so late after its end was kept by its host while the aggregator was away. */
const LATE_MS = 15_000
/** Clocks that differ by more are called wrong. */
const CLOCK_OFF_MS = 2_000

const stateOrder = {
  conflicting: 0,
  silent: 1,
  degraded: 2,
  draining: 3,
  starting: 4,
  ready: 5,
} as const

const columns: readonly Column<HostEntry>[] = [
  {
    key: 'name',
    title: 'Host',
    sortBy: ({ name }) => name,
    cell: ({ name }) => <HostLink name={name} />,
  },
  {
    key: 'state',
    title: 'State',
    width: 15,
    sortBy: ({ state }) => stateOrder[state],
    cell: ({ state }) => <HostState state={state} />,
  },
  {
    key: 'report',
    title: 'Last report',
    width: 16,
    isNumber: true,
    sortBy: ({ lastReportAt }) => -Date.parse(lastReportAt),
    cell: (host) => <LastReport host={host} />,
  },
  {
    key: 'problems',
    title: 'Problems',
    width: 29,
    sortBy: ({ problems }) => (problems.length === 0 ? null : -problems.length),
    cell: ({ problems }) => <ProblemCodes problems={problems} />,
  },
  {
    key: 'services',
    title: 'Services',
    width: 24,
    sortBy: ({ services }) => services.length,
    cell: ({ services }) => (
      <Names names={services} most={2} link={(name) => <ServiceLink name={name} />} />
    ),
  },
  {
    key: 'zone',
    title: 'Zone',
    width: 11,
    sortBy: ({ zone }) => zone,
    cell: ({ zone }) => <span class="name">{zone ?? UNKNOWN}</span>,
  },
  {
    key: 'datacenter',
    title: 'Datacenter',
    width: 12,
    sortBy: ({ datacenter }) => datacenter,
    cell: ({ datacenter }) => <span class="name">{datacenter ?? UNKNOWN}</span>,
  },
  {
    key: 'version',
    title: 'Version',
    width: 11,
    sortBy: ({ version }) => version,
    cell: ({ version }) => <span class="name">{version ?? UNKNOWN}</span>,
  },
  {
    key: 'clock',
    title: 'Clock',
    width: 10,
    hint: "The host's clock less the aggregator's",
    isNumber: true,
    sortBy: ({ clockOffsetMs }) => (clockOffsetMs === null ? null : Math.abs(clockOffsetMs)),
    cell: ({ clockOffsetMs }) => <ClockOffset ms={clockOffsetMs} />,
  },
  {
    key: 'cpu',
    title: 'CPU',
    width: 8,
    hint: 'Cores that the daemon uses',
    isNumber: true,
    sortBy: ({ cpu }) => cpu,
    cell: ({ cpu }) => formatCores(cpu),
  },
  {
    key: 'memory',
    title: 'Memory',
    width: 10,
    hint: 'Of the daemon',
    isNumber: true,
    sortBy: ({ memoryBytes }) => memoryBytes,
    cell: ({ memoryBytes }) => formatBytes(memoryBytes),
  },
]

/** How long ago the last report came; whether reports come late or were lost. */
export function LastReport({ host }: { readonly host: HostEntry }): ComponentChild {
  const age = formatAge(nowMs.value - Date.parse(host.lastReportAt))
  if (host.lostRecords > 0)
    return (
      <Badge tone="bad" title={`${host.lostRecords} records can never come: their host lost them`}>
        {age}, {formatCount(host.lostRecords)} lost
      </Badge>
    )
  if (host.lateMs > LATE_MS)
    return (
      <Badge tone="warn" title="Kept by the host while the aggregator could not be reached">
        {age}, {formatAge(host.lateMs)} late
      </Badge>
    )
  return <>{age}</>
}

/** The codes of problems, each with its message. */
function ProblemCodes({ problems }: Pick<HostEntry, 'problems'>): ComponentChild {
  if (problems.length === 0) return <span class="faint">none</span>
  return (
    <span class="badges">
      {problems.slice(0, 3).map(({ code, message, blocks }) => (
        <Badge key={code} tone={blocks ? 'bad' : 'warn'} title={message}>
          {code}
        </Badge>
      ))}
      {problems.length > 3 && <span class="faint">+{problems.length - 3}</span>}
    </span>
  )
}

/** By how much a clock is wrong. */
export function ClockOffset({ ms }: { readonly ms: number | null }): ComponentChild {
  if (ms === null) return UNKNOWN
  const sign = ms < 0 ? '−' : '+'
  const size = Math.abs(ms)
  if (size < CLOCK_OFF_MS) return <>{`${sign}${Math.round(size)}ms`}</>
  return <Badge tone="warn">{`${sign}${formatAge(size)}`}</Badge>
}

/** The page. */
export function HostsPage(): ComponentChild {
  const loaded = useDocument('hosts', useQuery())
  const { document } = loaded
  const hasText = (view.value.params['find'] ?? '') !== ''
  const rows =
    document?.hosts.filter((host) =>
      isWanted(host.name, host.zone, host.datacenter, host.version, host.state, ...host.services),
    ) ?? []
  return (
    <main class={`page${loaded.isOld && document !== null ? ' old' : ''}`}>
      <div class="head">
        <h1>Hosts</h1>
        {document !== null && <span class="faint">{plural(document.hosts.length, 'host')}</span>}
        <FindBox found={hasText ? rows.length : null} />
      </div>
      <Waiting loaded={loaded} what="the hosts" />
      {document !== null && <Notes coverage={document.coverage} />}
      {document !== null &&
        (rows.length === 0 ? (
          <Empty
            title={hasText ? 'No host fits' : 'No hosts'}
            {...(hasText ? {} : { coverage: document.coverage })}
            otherwise={
              hasText
                ? 'Shorten the text in find: names, zones, versions, states and services are searched.'
                : 'No host has ever reported to this aggregator.'
            }
          />
        ) : (
          <Table
            caption="Hosts"
            isCaptionHidden
            columns={columns}
            rows={rows}
            keyOf={({ name }) => name}
            sort="state"
            param="sort"
          />
        ))}
    </main>
  )
}
