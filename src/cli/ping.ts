/**
 * `hostmesh ping`: asks the daemons of a service's instances through the mesh, and shows where the time goes. No
 * application is touched.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { Command, InvalidArgumentError, Option } from 'commander'
import { MeshError } from '../lib/errors.ts'
import type { ServicesDocument } from '../model/admin.ts'
import type { Explanation } from '../model/explanation.ts'
import type { ProbeFacts } from '../model/facts.ts'
import { fetchDocument } from './admin-client.ts'
import { type AdminOptions, fetchList, hasKey } from './admin-command.ts'
import type { Answer } from './answer.ts'
import { exitCodes } from './failure.ts'
import { unknownName } from './known-names.ts'
import { addReadingOptions, show } from './reading-command.ts'
import { formatRoundTrip } from './render/format.ts'
import { type Cell, type Column, renderList, type TableStyle } from './render/table.ts'

/** Between two rounds: as ping(8). Milliseconds. */
const ROUND_MS = 1_000

const MAX_COUNT = 1_000

interface Options extends AdminOptions {
  readonly from?: string
  readonly count: number
}

/** What one instance has answered in one round. */
interface Reply extends ProbeFacts {
  /** From 1. */
  readonly round: number
  readonly node: string
  /** Its mesh listener, `ip:port`. */
  readonly address: string
}

/** What `hostmesh ping -o json` prints. */
interface PingDocument {
  readonly from: string
  readonly service: string
  readonly replies: readonly Reply[]
  /** Whether every instance would deliver a connection, in every round. */
  readonly delivered: boolean
}

/** The `ping` command. */
export function pingCommand(): Command {
  const command = new Command('ping')
    .description('Ask the instances of a service through the mesh, and show where the time goes')
    .argument('<service>', 'the destination: a service that this host knows')
    .option('--from <service>', 'the service of this host that calls; needed if there are several')
    .addOption(new Option('--count <number>', 'rounds, one a second').argParser(toCount).default(1))
  return addReadingOptions(command, { isRepeatable: false }).action(
    async (service: string, _options: unknown, self: Command) => {
      const options = self.optsWithGlobals<Options>()
      await show(options, () => ping(options, service))
    },
  )
}

async function ping(options: Options, service: string): Promise<Answer> {
  const from = options.from ?? (await soleCaller(options.addr, service))
  const query = new URLSearchParams({ from, to: service, probe: '1' })
  const replies: Reply[] = []
  let last: Explanation | undefined
  for (let round = 1; round <= options.count; round += 1) {
    if (round > 1) await delay(ROUND_MS)
    last = await fetchDocument(options.addr, `/v1/explain?${query.toString()}`, isExplanation)
    replies.push(...repliesOf(last, round))
  }
  if (last?.verdict === 'unknownService' || last?.verdict === 'unknownCaller')
    throw new MeshError('HM_SERVICE_NOT_FOUND', last.summary, {
      hint: 'hostmesh services lists what this host knows',
    })
  const delivered =
    replies.length > 0 &&
    replies.every(({ verdict, kind }) => verdict === 'delivered' || kind === 'handshake')
  const document: PingDocument = { from, service, replies, delivered }
  return {
    document,
    text: (style) => (replies.length === 0 ? '' : renderReplies(document, style)),
    notes: replies.length === 0 ? [last?.summary ?? '', ...(last?.next ?? [])] : [],
    exitCode: delivered ? exitCodes.ok : exitCodes.failed,
  }
}

/** The one service of this host; a host with several must be told which one calls. */
async function soleCaller(address: string, service: string): Promise<string> {
  const { local } = await fetchList<ServicesDocument>(address, '/v1/services', 'local')
  const names = [...new Set(local.map(({ name }) => name))]
  const [only] = names
  if (only !== undefined && names.length === 1) return only
  if (only === undefined)
    throw unknownName('service', service, {
      known: [],
      message: 'Cannot ping: this host has no service that could call',
      hint: 'Ping from a host that runs a service',
    })
  throw new MeshError(
    'HM_USAGE_QUESTION',
    `Cannot ping: ${names.length} services of this host can call`,
    {
      hint: `Give --from with one of: ${names.join(', ')}`,
    },
  )
}

function repliesOf({ probes = [], endpoints }: Explanation, round: number): Reply[] {
  return probes.map((probe) => {
    const instance = endpoints.find(({ endpoint }) => endpoint === probe.endpoint)
    return { ...probe, round, node: instance?.node ?? '?', address: instance?.address ?? '?' }
  })
}

const columns: readonly Column<Reply>[] = [
  { heading: 'ROUND', cell: ({ round }) => String(round) },
  { heading: 'INSTANCE', cell: ({ endpoint }) => endpoint },
  { heading: 'NODE', isWide: true, cell: ({ node }) => node },
  { heading: 'ADDRESS', isWide: true, cell: ({ address }) => address },
  { heading: 'TOTAL', cell: ({ tookMs }) => formatRoundTrip(tookMs) },
  { heading: 'TUNNEL', cell: ({ tunnel }) => (tunnel === 'here' ? 'this host' : (tunnel ?? '-')) },
  { heading: 'HANDSHAKE', cell: ({ dialMs }) => msText(dialMs) },
  { heading: 'ROUND TRIP', cell: ({ roundTripMs }) => msText(roundTripMs) },
  { heading: 'DECISION', cell: (reply) => msText(decisionMs(reply)) },
  { heading: 'ANSWER', cell: answerCell },
]

function renderReplies({ replies }: PingDocument, style: TableStyle): string {
  const totals = replies.map(({ tookMs }) => tookMs).toSorted((a, b) => a - b)
  const [least = 0] = totals
  const middle = totals[Math.floor(totals.length / 2)] ?? 0
  const summary = `${totals.length} answers, total ${formatRoundTrip(least)} / ${formatRoundTrip(middle)} / ${formatRoundTrip(totals.at(-1) ?? 0)} (least, median, most)`
  return `${renderList(columns, replies, style)}\n\n${summary}`
}

/** What the answer took beyond a round trip: limits, intentions, and whether the application listens. */
function decisionMs({
  answerMs,
  roundTripMs,
  tunnel,
}: Pick<ProbeFacts, 'answerMs' | 'roundTripMs' | 'tunnel'>): number | null {
  if (typeof answerMs !== 'number') return null
  if (tunnel === 'here') return answerMs
  return typeof roundTripMs === 'number' ? Math.max(0, answerMs - roundTripMs) : null
}

function msText(ms: number | null | undefined): string {
  return typeof ms === 'number' ? formatRoundTrip(ms) : '-'
}

function answerCell({ kind, verdict, application, reason, flag }: Reply): Cell {
  if (kind === 'failed') return { text: `${flag ?? '-'}: ${reason}`, tone: 'bad' }
  if (kind === 'handshake')
    return { text: 'Connect sidecar: only the handshake is proved', tone: 'warning' }
  if (kind === 'old') return { text: 'its daemon is too old to be asked', tone: 'warning' }
  if (verdict === 'delivered') {
    const known = application === 'listens' ? ', its application listens' : ''
    return { text: `would be delivered${known}`, tone: 'good' }
  }
  return { text: reason === '' ? (verdict ?? '-') : `${verdict}: ${reason}`, tone: 'bad' }
}

function isExplanation(value: unknown): value is Explanation {
  return hasKey(value, 'endpoints', Array.isArray) && hasKey(value, 'stations', Array.isArray)
}

function toCount(text: string): number {
  const count = Number(text)
  if (!Number.isInteger(count) || count < 1 || count > MAX_COUNT)
    throw new InvalidArgumentError(`It must be a number from 1 to ${MAX_COUNT}.`)
  return count
}
