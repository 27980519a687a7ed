/**
 * One host: what it is, its problems, capture, tunnels, services, what they use, whom they talk to.
 */
import type { ComponentChild } from 'preact'

import type { HostDocument, InstanceEntry, WorkloadEntry } from '../../model/fleet.ts'
import { nowMs } from '../clock.ts'
import {
  formatAge,
  formatBytes,
  formatCores,
  formatCount,
  formatShare,
  UNKNOWN,
} from '../format.ts'
import { Fact, Facts } from '../graph/panel.tsx'
import { hrefOf, view } from '../location.ts'
import { Charts, chartsTitle } from '../parts/charts.tsx'
import { Pairs } from '../parts/pairs.tsx'
import { type Column, Table } from '../parts/table.tsx'
import { Badge, Empty, HostState, Notes, Waiting } from '../parts/words.tsx'
import { useDocument } from '../use-document.ts'
import { ClockOffset, LastReport } from './hosts-page.tsx'
import { useQuery } from './query.ts'
import { columnsOnHost } from './service-page.tsx'

/** The page. */
export function HostPage({ name }: { readonly name: string }): ComponentChild {
  const loaded = useDocument('host', useQuery(name))
  const { document } = loaded
  return (
    <main class={`page${loaded.isOld && document !== null ? ' old' : ''}`}>
      <div class="head">
        <h1>
          <a href={hrefOf('hosts')}>Hosts</a>
          <span aria-hidden="true"> / </span>
          <span class="name">{name}</span>
        </h1>
        {document !== null && <HostState state={document.host.state} />}
      </div>
      <Waiting loaded={loaded} what="the host" />
      {document !== null && <Host document={document} />}
    </main>
  )
}

function Host({ document }: { readonly document: HostDocument }): ComponentChild {
  const { host, services, workloads, edges, counters, coverage } = document
  return (
    <>
      <Notes coverage={coverage} />
      <Problems problems={host.problems} />
      <What document={document} />
      <h2>
        Connections of its services <span class="faint">{chartsTitle(view.value.params)}</span>
      </h2>
      <Charts subject={{ host: host.name }} />
      <h2>Services</h2>
      {services.length === 0 ? (
        <Empty title="No service" coverage={coverage} otherwise="The host has reported none." />
      ) : (
        <Table
          caption="Services of the host"
          isCaptionHidden
          columns={serviceColumns}
          rows={services}
          keyOf={({ id }) => id}
          sort="id"
        />
      )}
      <h2>Resources</h2>
      {workloads.length === 0 ? (
        <Empty
          title="No figures of control groups"
          coverage={coverage}
          otherwise="The services do not run in units or containers that the host can tell apart."
        />
      ) : (
        <Table
          caption="Resources of workloads"
          isCaptionHidden
          columns={workloadColumns}
          rows={workloads}
          keyOf={({ service }) => service}
          sort="-cpu"
        />
      )}
      <h2>Pairs</h2>
      {edges.length === 0 ? (
        <Empty
          title="No connection"
          coverage={coverage}
          otherwise="None of its services called or was called."
        />
      ) : (
        <Pairs caption="Pairs of the host" isCaptionHidden edges={edges} linkNames />
      )}
      {Object.keys(counters).length > 0 && <Counters counters={counters} />}
    </>
  )
}

function Problems({ problems }: Pick<HostDocument['host'], 'problems'>): ComponentChild {
  if (problems.length === 0) return null
  return (
    <ul class="problems">
      {problems.map(({ code, message, blocks }) => (
        <li key={code}>
          <Badge tone={blocks ? 'bad' : 'warn'}>{code}</Badge> {message}
        </li>
      ))}
    </ul>
  )
}

function What({ document }: { readonly document: HostDocument }): ComponentChild {
  const { host, startedAt, nodeVersion, workers, capture, tunnels } = document
  return (
    <Facts>
      <Fact name="Last report">
        <LastReport host={host} />
      </Fact>
      <Fact name="Runs since">
        {startedAt === null ? UNKNOWN : formatAge(nowMs.value - Date.parse(startedAt))}
      </Fact>
      <Fact name="Version">{host.version ?? UNKNOWN}</Fact>
      <Fact name="Node.js">{nodeVersion ?? UNKNOWN}</Fact>
      <Fact name="Workers">{formatCount(workers)}</Fact>
      <Fact name="Datacenter">{host.datacenter ?? UNKNOWN}</Fact>
      <Fact name="Zone">{host.zone ?? UNKNOWN}</Fact>
      <Fact name="Clock">
        <ClockOffset ms={host.clockOffsetMs} />
      </Fact>
      <Fact name="Tunnels">
        {tunnels === null
          ? UNKNOWN
          : `${formatCount(tunnels.sessions)} to ${formatCount(tunnels.peers)} hosts, mutual TLS`}
      </Fact>
      <Fact name="Capture">
        <Capture capture={capture} />
      </Fact>
      <Fact name="Around the mesh">
        <PlainInbound count={capture?.plainInbound ?? null} />
      </Fact>
      <Fact name="Daemon">
        {formatCores(host.cpu)} cores, {formatBytes(host.memoryBytes)}
      </Fact>
    </Facts>
  )
}

function Capture({ capture }: Pick<HostDocument, 'capture'>): ComponentChild {
  if (capture === null) return UNKNOWN
  if (capture.mode === 'off') return <Badge tone="warn">off</Badge>
  const backend = capture.backend ?? 'on'
  return capture.inSync === false ? (
    <Badge tone="bad">{backend}, rules not in the kernel</Badge>
  ) : (
    <>{backend}</>
  )
}

function PlainInbound({ count }: { readonly count: number | null }): ComponentChild {
  if (count === null) return UNKNOWN
  const text = `${formatCount(count)} plaintext connections`
  return count === 0 ? <>{text}</> : <Badge tone="warn">{text}</Badge>
}

const serviceColumns: readonly Column<InstanceEntry>[] = columnsOnHost

const workloadColumns: readonly Column<WorkloadEntry>[] = [
  {
    key: 'service',
    title: 'Service',
    sortBy: ({ service }) => service,
    cell: ({ service }) => <span class="name">{service}</span>,
  },
  numberColumn('cpu', 'CPU', 'Cores', ({ cpu }) => cpu, formatCores),
  numberColumn('memory', 'Memory', '', ({ memoryBytes }) => memoryBytes, formatBytes),
  numberColumn('tasks', 'Tasks', '', ({ tasks }) => tasks, formatCount),
  numberColumn('sockets', 'Sockets', '', ({ sockets }) => sockets, formatCount),
  numberColumn(
    'cpuPressure',
    'CPU waits',
    'Share of the time in which a task waited',
    ({ cpuPressure }) => cpuPressure,
    formatShare,
  ),
  numberColumn(
    'memoryPressure',
    'Memory waits',
    '',
    ({ memoryPressure }) => memoryPressure,
    formatShare,
  ),
  numberColumn('ioPressure', 'Disk waits', '', ({ ioPressure }) => ioPressure, formatShare),
]

function numberColumn(
  key: string,
  title: string,
  hint: string,
  valueOf: (row: WorkloadEntry) => number | null,
  format: (value: number | null) => string,
): Column<WorkloadEntry> {
  return {
    key,
    title,
    isNumber: true,
    ...(hint === '' ? {} : { hint }),
    sortBy: valueOf,
    cell: (row) => format(valueOf(row)),
  }
}

function Counters({ counters }: Pick<HostDocument, 'counters'>): ComponentChild {
  return (
    <details>
      <summary>Counters of the host in the span</summary>
      <dl class="endings">
        {Object.entries(counters)
          .toSorted(([a], [b]) => a.localeCompare(b, 'en'))
          .map(([name, value]) => (
            <div key={name}>
              <dt>
                <code>{name}</code>
              </dt>
              <dd>{formatCount(value)}</dd>
            </div>
          ))}
      </dl>
    </details>
  )
}
