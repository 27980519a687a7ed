/**
 * One service: golden signals, history, instances, callers, destinations, intentions.
 */
import type { ComponentChild } from 'preact'

import type { FleetServiceDocument, InstanceEntry, ServiceSummary } from '../../model/fleet.ts'
import { nowMs } from '../clock.ts'
import {
  formatAge,
  formatByteRate,
  formatBytes,
  formatCores,
  formatCount,
  formatLatency,
  formatRate,
  formatShare,
  plural,
  UNKNOWN,
} from '../format.ts'
import { deniedOf } from '../graph/scene.ts'
import { hrefOf, view } from '../location.ts'
import { Charts, chartsTitle } from '../parts/charts.tsx'
import { Endings, ErrorShare, Pairs } from '../parts/pairs.tsx'
import { type Column, Table } from '../parts/table.tsx'
import {
  Badge,
  Empty,
  Health,
  HostLink,
  HostState,
  Notes,
  ServiceLink,
  Waiting,
} from '../parts/words.tsx'
import { useDocument } from '../use-document.ts'
import { useQuery } from './query.ts'

/** The page. */
export function ServicePage({ name }: { readonly name: string }): ComponentChild {
  const loaded = useDocument('service', useQuery(name))
  const { document } = loaded
  return (
    <main class={`page${loaded.isOld && document !== null ? ' old' : ''}`}>
      <div class="head">
        <h1>
          <a href={hrefOf('services')}>Services</a>
          <span aria-hidden="true"> / </span>
          <span class="name">{name}</span>
        </h1>
        {document !== null && (
          <>
            <Health health={document.service.health} />
            <span class="faint">
              {document.service.protocol}, {plural(document.service.instances, 'instance')}
            </span>
            <a
              href={hrefOf('graph', '', {
                sel: name.replaceAll('%', '%25').replaceAll('>', '%3E'),
              })}
            >
              in the graph
            </a>
          </>
        )}
      </div>
      <Waiting loaded={loaded} what="the service" />
      {document !== null && <Service document={document} />}
    </main>
  )
}

function Service({ document }: { readonly document: FleetServiceDocument }): ComponentChild {
  const { service, instances, callers, destinations, coverage } = document
  return (
    <>
      <Notes coverage={coverage} />
      {service.reasons.length > 0 && (
        <ul class="reasons">
          {service.reasons.map((reason) => (
            <li key={reason}>{reason}</li>
          ))}
        </ul>
      )}
      <Signals service={service} />
      <h2>
        Connections to it <span class="faint">{chartsTitle(view.value.params)}</span>
      </h2>
      <Charts subject={{ destination: service.name }} />
      <h2>Instances</h2>
      {instances.length === 0 ? (
        <Empty
          title="No instance"
          coverage={coverage}
          otherwise="No host has reported an instance: it only calls, or it is gone."
        />
      ) : (
        <Instances instances={instances} caption={`Instances of ${service.name}`} />
      )}
      <h2>Callers</h2>
      {callers.length === 0 ? (
        <Empty
          title="Nobody called it"
          coverage={coverage}
          otherwise="No connection to it in the span."
        />
      ) : (
        <Pairs caption="Callers" isCaptionHidden edges={callers} without="destination" linkNames />
      )}
      <h2>Destinations</h2>
      {destinations.length === 0 ? (
        <Empty
          title="It called nobody"
          coverage={coverage}
          otherwise="No connection by it in the span."
        />
      ) : (
        <Pairs
          caption="Destinations"
          isCaptionHidden
          edges={destinations}
          without="source"
          linkNames
        />
      )}
      <h2>Intentions</h2>
      <Intentions policy={document.policy} />
      <h2>How connections ended</h2>
      <Endings traffic={service.inbound} />
    </>
  )
}

function Signals({ service: { inbound } }: { readonly service: ServiceSummary }): ComponentChild {
  return (
    <dl class="signals">
      <Signal name="Opened" value={formatRate(inbound.openedPerSecond)}>
        {formatCount(inbound.active)} open
      </Signal>
      <Signal name="Failed" value={<ErrorShare traffic={inbound} />}>
        {formatCount(inbound.connectFailures)} not connected, {formatCount(deniedOf(inbound))}{' '}
        denied
      </Signal>
      <Signal name="Connect p99" value={formatLatency(inbound.connectMs?.p99)}>
        p50 {formatLatency(inbound.connectMs?.p50)}
      </Signal>
      <Signal name="First byte p99" value={formatLatency(inbound.firstByteMs?.p99)}>
        p50 {formatLatency(inbound.firstByteMs?.p50)}
      </Signal>
      <Signal
        name="Bytes"
        value={formatByteRate(inbound.sentBytesPerSecond + inbound.receivedBytesPerSecond)}
      >
        {formatByteRate(inbound.sentBytesPerSecond)} sent
      </Signal>
    </dl>
  )
}

function Signal(props: {
  readonly name: string
  readonly value: ComponentChild
  readonly children: ComponentChild
}): ComponentChild {
  return (
    <div class="signal">
      <dt>{props.name}</dt>
      <dd>
        <span class="value">{props.value}</span>
        <span class="faint">{props.children}</span>
      </dd>
    </div>
  )
}

const HOUR_MS = 3_600_000

const instanceColumns: readonly Column<InstanceEntry>[] = [
  {
    key: 'host',
    title: 'Host',
    sortBy: ({ host }) => host,
    cell: ({ host }) => <HostLink name={host} />,
  },
  {
    key: 'state',
    title: 'State of the host',
    width: 17,
    sortBy: ({ hostState }) => hostState,
    cell: ({ hostState }) => <HostState state={hostState} />,
  },
  {
    key: 'id',
    title: 'Instance',
    sortBy: ({ id }) => id,
    cell: ({ id }) => <span class="name">{id}</span>,
  },
  {
    key: 'health',
    title: 'Checks',
    width: 14,
    sortBy: ({ health }) => health,
    cell: ({ health }) =>
      health === null ? (
        <span class="faint">not known</span>
      ) : (
        <Badge tone={({ passing: 'good', warning: 'warn', critical: 'bad' } as const)[health]}>
          {health}
        </Badge>
      ),
  },
  {
    key: 'target',
    title: 'Target',
    sortBy: ({ target }) => target,
    cell: ({ target }) =>
      target === null ? <span class="faint">only calls</span> : <code>{target}</code>,
  },
  {
    key: 'captured',
    title: 'Capture',
    width: 11,
    sortBy: ({ captured }) => Number(captured),
    cell: ({ captured }) => (captured ? 'on' : <Badge tone="warn">off</Badge>),
  },
  {
    key: 'certificate',
    title: 'Certificate',
    hint: 'Time until it ends',
    isNumber: true,
    sortBy: ({ certificateNotAfter }) =>
      certificateNotAfter === null ? null : Date.parse(certificateNotAfter),
    cell: ({ certificateNotAfter }) => <CertificateLeft notAfter={certificateNotAfter} />,
  },
  {
    key: 'cpu',
    title: 'CPU',
    hint: 'Cores',
    isNumber: true,
    sortBy: ({ resources }) => resources?.cpu ?? null,
    cell: ({ resources }) => formatCores(resources?.cpu ?? null),
  },
  {
    key: 'memory',
    title: 'Memory',
    isNumber: true,
    sortBy: ({ resources }) => resources?.memoryBytes ?? null,
    cell: ({ resources }) => formatBytes(resources?.memoryBytes ?? null),
  },
  {
    key: 'pressure',
    title: 'Pressure',
    hint: 'Share of the time in which a task waited for CPU, memory or disk: the largest',
    isNumber: true,
    sortBy: (instance) => pressureOf(instance),
    cell: (instance) => formatShare(pressureOf(instance)),
  },
]

function pressureOf({ resources }: InstanceEntry): number | null {
  const known = [
    resources?.cpuPressure ?? null,
    resources?.memoryPressure ?? null,
    resources?.ioPressure ?? null,
  ].filter((share) => share !== null)
  return known.length === 0 ? null : Math.max(...known)
}

function CertificateLeft({ notAfter }: { readonly notAfter: string | null }): ComponentChild {
  if (notAfter === null) return <span class="faint">{UNKNOWN}</span>
  const left = Date.parse(notAfter) - nowMs.value
  const text = left <= 0 ? 'ended' : formatAge(left)
  return left < HOUR_MS ? <Badge tone={left <= 0 ? 'bad' : 'warn'}>{text}</Badge> : text
}

function Instances(props: {
  readonly instances: readonly InstanceEntry[]
  readonly caption: string
}): ComponentChild {
  return (
    <Table
      caption={props.caption}
      isCaptionHidden
      columns={instanceColumns}
      rows={props.instances}
      keyOf={({ host, id }) => `${host} ${id}`}
      sort="host"
    />
  )
}

/** The columns of instances that are of one host. */
export const columnsOnHost = instanceColumns.filter(({ key }) => key !== 'host' && key !== 'state')

type Intention = FleetServiceDocument['policy']['intentions'][number]

const intentionColumns: readonly Column<Intention>[] = [
  {
    key: 'source',
    title: 'Caller',
    sortBy: ({ source }) => source,
    cell: ({ source }) => (source === '*' ? 'any' : <ServiceLink name={source} />),
  },
  {
    key: 'destination',
    title: 'Destination',
    sortBy: ({ destination }) => destination,
    cell: ({ destination }) => (destination === '*' ? 'any' : <ServiceLink name={destination} />),
  },
  {
    key: 'action',
    title: 'Action',
    width: 14,
    sortBy: ({ action }) => action,
    cell: ({ action }) => <Badge tone={action === 'allow' ? 'good' : 'deny'}>{action}</Badge>,
  },
  {
    key: 'precedence',
    title: 'Precedence',
    isNumber: true,
    sortBy: ({ precedence }) => precedence,
    cell: ({ precedence }) => precedence,
  },
  {
    key: 'used',
    title: 'Used',
    width: 18,
    hint: 'Connections in the span that the rule decided',
    isNumber: true,
    sortBy: ({ used }) => used,
    cell: ({ used }) =>
      used === 0 ? <span class="faint">not in the span</span> : formatCount(used),
  },
]

function Intentions({ policy }: Pick<FleetServiceDocument, 'policy'>): ComponentChild {
  const { defaultAction, intentions } = policy
  const fallback =
    defaultAction === null
      ? 'No host has reported the default policy.'
      : `Callers without a rule: ${defaultAction} (default policy).`
  return (
    <>
      <p>{fallback}</p>
      {intentions.length === 0 ? (
        <p class="faint">No intention names this service.</p>
      ) : (
        <Table
          caption="Intentions"
          isCaptionHidden
          columns={intentionColumns}
          rows={intentions}
          keyOf={({ source, destination, precedence }) => `${source} ${destination} ${precedence}`}
          sort="-precedence"
        />
      )}
    </>
  )
}
