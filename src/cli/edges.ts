/**
 * `hostmesh edges` and `hostmesh top`: who calls whom, how often and how well; of this host, or of the fleet.
 */
import { Command, InvalidArgumentError, Option } from 'commander'
import { parseDuration } from '../lib/duration.ts'
import type { GraphDocument, GraphEdge } from '../model/fleet.ts'
import type { Answer } from './answer.ts'
import { edgeColumns } from './edge-columns.ts'
import { fetchFleet } from './fleet-client.ts'
import { addFleetOptions, coverageNotes, type FleetOptions } from './fleet-command.ts'
import { HostEdges } from './host-edges.ts'
import { unknownName } from './known-names.ts'
import { addPairFilter, filterWords, isWanted, type PairFilter } from './pair-filter.ts'
import { addReadingOptions, readingCommand, show } from './reading-command.ts'
import { renderList } from './render/table.ts'

/** Options of both commands. */
interface EdgeOptions extends FleetOptions, PairFilter {
  readonly addr: string
  readonly fleet?: true
  readonly host?: string
  readonly window?: string
  readonly at?: string
  readonly sort?: SortKey
  readonly once?: true
}

/** By what `top` sorts, the highest first. */
type SortKey = keyof typeof sortKeys

const sortKeys = {
  connections: ({ traffic }: GraphEdge) => traffic.openedPerSecond,
  errors: ({ traffic }: GraphEdge) => (traffic.errorShare ?? 0) * (traffic.openedPerSecond || 1),
  active: ({ traffic }: GraphEdge) => traffic.active,
  connect: ({ traffic }: GraphEdge) => traffic.connectMs?.p99 ?? 0,
  firstByte: ({ traffic }: GraphEdge) => traffic.firstByteMs?.p99 ?? 0,
  bytes: ({ traffic }: GraphEdge) => traffic.sentBytesPerSecond + traffic.receivedBytesPerSecond,
}

const TOP_INTERVAL_MS = 1_000

/** The `edges` command. */
export function edgesCommand(): Command {
  const command = readingCommand('edges', 'Show who calls whom, how often and how well')
  return addEdgeOptions(command)
    .option('--at <time>', 'with --fleet: as it was then, such as 2027-01-31T12:00:00Z', toTime)
    .action(async (_options: unknown, self: Command) => {
      const options = self.optsWithGlobals<EdgeOptions>()
      const edges = edgeSource(options)
      await show(options, () => edges((a, b) => compare(a.source, b.source, a, b)))
    })
}

/** The `top` command. */
export function topCommand(): Command {
  const command = addReadingOptions(
    new Command('top').description('Show the busiest pairs of services, again every second'),
    { intervalMs: TOP_INTERVAL_MS },
  )
  const own = addEdgeOptions(command)
    .addOption(
      new Option('--sort <figure>', 'what is on top')
        .choices(Object.keys(sortKeys))
        .default('connections'),
    )
    .option('--once', 'print one answer and end')
  return own.action(async (_options: unknown, self: Command) => {
    const options = self.optsWithGlobals<EdgeOptions>()
    const figure = sortKeys[options.sort ?? 'connections']
    const edges = edgeSource(options)
    // Watching is what this command is for.
    await show({ ...options, watch: options.once !== true }, () =>
      edges((a, b) => figure(b) - figure(a) || compare(a.source, b.source, a, b)),
    )
  })
}

function compare(left: string, right: string, a: GraphEdge, b: GraphEdge): number {
  if (left !== right) return left < right ? -1 : 1
  return a.destination < b.destination ? -1 : Number(a.destination > b.destination)
}

function addEdgeOptions(command: Command): Command {
  addPairFilter(command)
    .option('--fleet', 'ask the aggregator for all hosts; this host alone unless given')
    .option('--host <name>', 'with --fleet: connections of the services of this host')
    .option('--window <duration>', 'with --fleet: span of the figures, 10s to 1d', toWindow)
  return addFleetOptions(command)
}

/** What is asked again and again; the argument is the order. */
function edgeSource(
  options: EdgeOptions,
): (order: (a: GraphEdge, b: GraphEdge) => number) => Promise<Answer> {
  const host = options.fleet === true ? undefined : new HostEdges(options.addr)
  return async (order) => {
    const graph = host === undefined ? await fetchEdges(options) : await host.read()
    requireKnownServices(options, graph)
    const edges = graph.edges.filter((edge) => isWanted(options, edge)).toSorted(order)
    const omitted =
      graph.omitted > 0 ? [`${graph.omitted} more services and pairs are not listed`] : []
    const empty = edges.length > 0 ? [] : [`No connections${filterWords(options)} in this time`]
    return {
      document: { ...graph, edges },
      text: (style) => (edges.length === 0 ? '' : renderList(edgeColumns, edges, style)),
      notes: [...empty, ...omitted, ...coverageNotes(graph.coverage)],
    }
  }
}

/** The pairs of the fleet, or of one host, which has no nodes of its own. */
async function fetchEdges(options: EdgeOptions): Promise<GraphDocument> {
  const { host, window, at } = options
  if (host === undefined) return fetchFleet(options, 'graph', { window, at })
  const { coverage, edges } = await fetchFleet(options, 'host', { name: host, window, at })
  return { coverage, group: 'service', nodes: [], edges, omitted: 0 }
}

function requireKnownServices(filter: PairFilter, { nodes, edges }: GraphDocument): void {
  const known = new Set(nodes.map(({ id }) => id))
  for (const { source, destination } of edges) known.add(source).add(destination)
  for (const name of [filter.source, filter.destination])
    if (name !== undefined && !known.has(name))
      throw unknownName('service', name, {
        known,
        message: `Cannot show connections of ${name}: no such service was seen`,
        hint: 'See what there is: hostmesh services --fleet',
      })
}

function toWindow(text: string): string {
  const ms = parseDuration(text)
  if (ms === undefined || ms < 10_000 || ms > 86_400_000)
    throw new InvalidArgumentError('It must be a duration such as 1m or 2h, 10s to 1d.')
  return text
}

function toTime(text: string): string {
  const ms = Date.parse(text)
  if (Number.isNaN(ms))
    throw new InvalidArgumentError('It must be a time such as 2027-01-31T12:00:00Z.')
  return new Date(ms).toISOString()
}
