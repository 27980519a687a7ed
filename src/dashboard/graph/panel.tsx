/**
 * What is known of the node or edge that the reader has chosen.
 */
import type { ComponentChild, ComponentChildren } from 'preact'

import type { GraphDocument, GraphEdge, Quantiles, Traffic } from '../../model/fleet.ts'
import { formatByteRate, formatCount, formatLatency, formatRate } from '../format.ts'
import { hrefOf } from '../location.ts'
import { Endings, ErrorShare, Policy } from '../parts/pairs.tsx'
import { Badge, Health, HostLink, Names } from '../parts/words.tsx'
import { edgeKey } from './scene.ts'
import type { Selection } from './selection.ts'

/** The panel beside the picture; nothing while nothing is chosen. */
export function Panel(props: {
  readonly document: GraphDocument
  readonly selection: Selection
  readonly select: (selection: Selection) => void
}): ComponentChild {
  const { document, selection, select } = props
  if (selection === null) return null
  return (
    <aside class="panel" aria-label="Details">
      <button type="button" class="close" aria-label="Close details" onClick={() => select(null)}>
        ×
      </button>
      {selection.kind === 'node' ? (
        <NodeDetails document={document} id={selection.id} select={select} />
      ) : (
        <EdgeDetails document={document} edgeName={selection.key} select={select} />
      )}
    </aside>
  )
}

function NodeDetails(props: {
  readonly document: GraphDocument
  readonly id: string
  readonly select: (selection: Selection) => void
}): ComponentChild {
  const { document, id, select } = props
  const node = document.nodes.find((candidate) => candidate.id === id)
  if (node === undefined) return <Gone name={id} />
  const isService = document.group === 'service'
  const callers = document.edges.filter(({ destination }) => destination === id)
  const called = document.edges.filter(({ source }) => source === id)
  const page = isService ? hrefOf('services', id) : hrefOf('hosts', id)
  return (
    <>
      <h2 class="name">{id}</h2>
      <p>
        <Health health={node.health} />{' '}
        {(isService || document.group === 'host') && <a href={page}>open its page</a>}
      </p>
      {node.reasons.length > 0 && (
        <ul class="reasons">
          {node.reasons.map((reason) => (
            <li key={reason}>{reason}</li>
          ))}
        </ul>
      )}
      <Facts>
        <Fact name={isService ? 'Instances' : 'Services'}>{formatCount(node.instances)}</Fact>
        <Fact name="Hosts">
          <Names names={node.hosts} link={(name) => <HostLink name={name} />} />
        </Fact>
      </Facts>
      <Ends title="Callers" edges={callers} end="source" select={select} />
      <Ends title="Destinations" edges={called} end="destination" select={select} />
    </>
  )
}

function Ends(props: {
  readonly title: string
  readonly edges: readonly GraphEdge[]
  readonly end: 'source' | 'destination'
  readonly select: (selection: Selection) => void
}): ComponentChild {
  const { title, end, select } = props
  const edges = props.edges.toSorted(
    (a, b) => b.traffic.openedPerSecond - a.traffic.openedPerSecond,
  )
  return (
    <>
      <h3>
        {title} <span class="faint">{edges.length}</span>
      </h3>
      {edges.length === 0 && <p class="faint">None in the span.</p>}
      <ul class="ends">
        {edges.slice(0, 30).map((edge) => (
          <li key={edgeKey(edge)}>
            <button type="button" onClick={() => select({ kind: 'edge', key: edgeKey(edge) })}>
              <span class="name">{edge[end]}</span>
              <span class="number">{formatRate(edge.traffic.openedPerSecond)}</span>
              <span class="number">
                <ErrorShare traffic={edge.traffic} />
              </span>
            </button>
          </li>
        ))}
      </ul>
      {edges.length > 30 && <p class="faint">and {edges.length - 30} more, in the table</p>}
    </>
  )
}

function EdgeDetails(props: {
  readonly document: GraphDocument
  readonly edgeName: string
  readonly select: (selection: Selection) => void
}): ComponentChild {
  const { document, edgeName, select } = props
  const [source = '', destination = ''] = edgeName.split('\u0000')
  const edge = document.edges.find((candidate) => edgeKey(candidate) === edgeName)
  return (
    <>
      <h2 class="pair">
        <button type="button" class="name" onClick={() => select({ kind: 'node', id: source })}>
          {source}
        </button>
        <span aria-label="calls">→</span>
        <button
          type="button"
          class="name"
          onClick={() => select({ kind: 'node', id: destination })}
        >
          {destination}
        </button>
      </h2>
      {edge === undefined ? (
        <Gone name={`${source} to ${destination}`} />
      ) : (
        <EdgeFigures edge={edge} document={document} />
      )}
    </>
  )
}

function EdgeFigures(props: {
  readonly edge: GraphEdge
  readonly document: GraphDocument
}): ComponentChild {
  const { edge, document } = props
  const { traffic } = edge
  return (
    <>
      <p>
        <Policy edge={edge} /> <Transport edge={edge} document={document} />
      </p>
      <p class="reason">
        {edge.policy?.reason ?? 'No host has reported the intentions of the destination.'}
      </p>
      <Facts>
        <Fact name="Opened">{formatRate(traffic.openedPerSecond)}</Fact>
        <Fact name="Open now">{formatCount(traffic.active)}</Fact>
        <Fact name="Failed">
          <ErrorShare traffic={traffic} />
        </Fact>
        <Fact name="Connect failures">{formatCount(traffic.connectFailures)}</Fact>
        <Fact name="Sent">{formatByteRate(traffic.sentBytesPerSecond)}</Fact>
        <Fact name="Received">{formatByteRate(traffic.receivedBytesPerSecond)}</Fact>
      </Facts>
      <Latencies traffic={traffic} />
      <h3>How connections ended</h3>
      <Endings traffic={traffic} />
      <p class="faint">
        As the {edge.reporter === 'source' ? 'caller' : 'destination'}'s hosts counted it.
      </p>
    </>
  )
}

/** Between hosts a connection goes through a tunnel with mutual TLS; inside of one host it does not leave it. */
function Transport({
  edge,
  document,
}: {
  readonly edge: GraphEdge
  readonly document: GraphDocument
}): ComponentChild {
  if (document.group !== 'service') return null
  const hostsOf = (id: string): readonly string[] =>
    document.nodes.find((node) => node.id === id)?.hosts ?? []
  const [from, to] = [hostsOf(edge.source), hostsOf(edge.destination)]
  const isLocal = from.length === 1 && to.length === 1 && from[0] === to[0]
  return isLocal ? (
    <Badge tone="quiet">inside of one host</Badge>
  ) : (
    <Badge tone="good" title="Each connection between hosts is in a tunnel with mutual TLS">
      mutual TLS
    </Badge>
  )
}

/** Quantiles of the three times of connections. */
function Latencies({ traffic }: { readonly traffic: Traffic }): ComponentChild {
  const rows: readonly [string, Quantiles | null][] = [
    ['Connect', traffic.connectMs],
    ['First byte', traffic.firstByteMs],
    ['Duration', traffic.durationMs],
  ]
  return (
    <table class="quantiles">
      <caption class="only-read">Quantiles of times</caption>
      <thead>
        <tr>
          <th scope="col">Time</th>
          {['p50', 'p90', 'p99'].map((name) => (
            <th key={name} scope="col" class="number">
              {name}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map(([name, quantiles]) => (
          <tr key={name}>
            <th scope="row">{name}</th>
            <td class="number">{formatLatency(quantiles?.p50)}</td>
            <td class="number">{formatLatency(quantiles?.p90)}</td>
            <td class="number">{formatLatency(quantiles?.p99)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}

function Gone({ name }: { readonly name: string }): ComponentChild {
  return (
    <p class="faint">
      <span class="name">{name}</span> is not in this picture: no host has reported it in the span.
    </p>
  )
}

/** Names and figures, two columns. */
export function Facts({ children }: { readonly children: ComponentChildren }): ComponentChild {
  return <dl class="facts">{children}</dl>
}

/** One of {@link Facts}. */
export function Fact(props: {
  readonly name: string
  readonly children: ComponentChildren
}): ComponentChild {
  return (
    <div>
      <dt>{props.name}</dt>
      <dd>{props.children}</dd>
    </div>
  )
}

/** In words how much is shown, for a heading. */
export function countsOf({ nodes, edges, group }: GraphDocument): string {
  const count = (size: number, word: string): string => `${size} ${word}${size === 1 ? '' : 's'}`
  return `${count(nodes.length, group)}, ${count(edges.length, 'pair')}`
}
