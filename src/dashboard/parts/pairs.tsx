/**
 * Pairs of services as a table: what the picture of the graph says, for the keyboard and for screen readers.
 */
import type { ComponentChild } from 'preact'
import type { GraphEdge, Traffic } from '../../model/fleet.ts'
import { responseFlags } from '../../model/response-flag.ts'
import {
  formatByteRate,
  formatCount,
  formatLatency,
  formatRate,
  formatShare,
  UNKNOWN,
} from '../format.ts'
import { deniedOf, edgeKey, healthOf, isActive, policyText } from '../graph/scene.ts'
import { type Column, Table } from './table.tsx'
import { Badge, ServiceLink, type Tone } from './words.tsx'

const flagMeanings: ReadonlyMap<string, string> = new Map(Object.entries(responseFlags))

/** What the table of pairs is about. */
export interface PairsProps {
  readonly caption: string
  readonly edges: readonly GraphEdge[]
  /** The end that is the same in all rows. */
  readonly without?: 'source' | 'destination'
  readonly linkNames: boolean
  readonly param?: string
  readonly isCaptionHidden?: boolean
  readonly marked?: string | undefined
  readonly select?: (edge: GraphEdge) => void
}

/** The table of pairs. */
export function Pairs(props: PairsProps): ComponentChild {
  const { select, marked } = props
  const columns = [
    ...nameColumns(props),
    ...figureColumns,
    ...(select === undefined ? [] : [showColumn(select)]),
  ]
  return (
    <Table
      caption={props.caption}
      columns={columns}
      rows={props.edges}
      keyOf={edgeKey}
      sort="-rate"
      {...(props.param === undefined ? {} : { param: props.param })}
      isCaptionHidden={props.isCaptionHidden ?? false}
      isMarked={(edge) => edgeKey(edge) === marked}
    />
  )
}

function nameColumns({ without, linkNames }: PairsProps): Column<GraphEdge>[] {
  const cell = (name: string): ComponentChild =>
    linkNames ? <ServiceLink name={name} /> : <span class="name">{name}</span>
  const columns: Column<GraphEdge>[] = [
    {
      key: 'source',
      title: 'Caller',
      sortBy: ({ source }) => source,
      cell: ({ source }) => cell(source),
    },
    {
      key: 'destination',
      title: 'Destination',
      sortBy: ({ destination }) => destination,
      cell: ({ destination }) => cell(destination),
    },
  ]
  return columns.filter(({ key }) => key !== without)
}

const figureColumns: readonly Column<GraphEdge>[] = [
  {
    key: 'rate',
    title: 'Opened',
    hint: 'Connections opened a second',
    isNumber: true,
    sortBy: ({ traffic }) => traffic.openedPerSecond,
    cell: ({ traffic }) => formatRate(traffic.openedPerSecond),
  },
  {
    key: 'active',
    title: 'Open',
    hint: 'Connections that are open',
    isNumber: true,
    sortBy: ({ traffic }) => traffic.active,
    cell: ({ traffic }) => formatCount(traffic.active),
  },
  {
    key: 'errors',
    title: 'Failed',
    hint: 'Share of ended connections that the mesh or the instance failed',
    isNumber: true,
    sortBy: ({ traffic }) => traffic.errorShare,
    cell: ({ traffic }) => <ErrorShare traffic={traffic} />,
  },
  {
    key: 'denied',
    title: 'Denied',
    hint: 'Connections that a policy refused in the span',
    isNumber: true,
    sortBy: ({ traffic }) => deniedOf(traffic),
    cell: ({ traffic }) => formatCount(deniedOf(traffic)),
  },
  {
    key: 'connect',
    title: 'Connect p99',
    isNumber: true,
    sortBy: ({ traffic }) => traffic.connectMs?.p99 ?? null,
    cell: ({ traffic }) => formatLatency(traffic.connectMs?.p99),
  },
  {
    key: 'firstbyte',
    title: 'First byte p99',
    isNumber: true,
    sortBy: ({ traffic }) => traffic.firstByteMs?.p99 ?? null,
    cell: ({ traffic }) => formatLatency(traffic.firstByteMs?.p99),
  },
  {
    key: 'bytes',
    title: 'Bytes',
    hint: 'Sent and received a second',
    isNumber: true,
    sortBy: ({ traffic }) => traffic.sentBytesPerSecond + traffic.receivedBytesPerSecond,
    cell: ({ traffic }) =>
      formatByteRate(traffic.sentBytesPerSecond + traffic.receivedBytesPerSecond),
  },
  {
    key: 'policy',
    title: 'Policy',
    width: 18,
    sortBy: (edge) => policyText(edge),
    cell: (edge) => <Policy edge={edge} />,
  },
]

function showColumn(select: (edge: GraphEdge) => void): Column<GraphEdge> {
  return {
    key: 'show',
    title: 'Details',
    width: 10,
    sortBy: () => null,
    cell: (edge) => (
      <button
        type="button"
        class="more"
        aria-label={`Show ${edge.source} to ${edge.destination}`}
        onClick={() => select(edge)}
      >
        show
      </button>
    ),
  }
}

/** The decision for a pair, with the rule as its explanation. */
export function Policy({ edge }: { readonly edge: GraphEdge }): ComponentChild {
  const { policy } = edge
  const tone: Tone = policy === null ? 'quiet' : policy.allow ? 'good' : 'deny'
  return (
    <Badge tone={tone} title={policy?.reason}>
      {policyText(edge)}
    </Badge>
  )
}

/** The share of failed connections; red and amber as in the graph. */
export function ErrorShare({ traffic }: { readonly traffic: Traffic }): ComponentChild {
  const kind = healthOf({
    source: '',
    destination: '',
    traffic: { ...traffic, closed: {} },
    reporter: 'source',
    policy: null,
  })
  return <span class={`share ${kind}`}>{formatShare(traffic.errorShare)}</span>
}

/** How connections ended, by flag, with what each flag means. */
export function Endings({ traffic }: { readonly traffic: Traffic }): ComponentChild {
  const endings = Object.entries(traffic.closed).toSorted(([, a], [, b]) => b - a)
  if (endings.length === 0)
    return (
      <p class="faint">
        {isActive(traffic) ? 'No connection ended in the span.' : 'No connection in the span.'}
      </p>
    )
  return (
    <dl class="endings">
      {endings.map(([flag, count]) => (
        <div key={flag}>
          <dt>
            <code>{flag}</code> {flagMeanings.get(flag) ?? UNKNOWN}
          </dt>
          <dd>{formatCount(count)}</dd>
        </div>
      ))}
    </dl>
  )
}
