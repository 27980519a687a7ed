/**
 * Answers the questions that the admin API asks a worker.
 */
import { formatAddress } from '../model/address.ts'
import type { FromWorker, PeerView, ToWorker } from './protocol.ts'
import { type ProbeResult, probe } from './proxy/probe.ts'
import type { WorkerContext } from './proxy/worker-context.ts'
import type { Sessions } from './sessions.ts'
import type { Session } from './tunnel/session.ts'

/** Limit of endpoints in one answer about the balancer. */
const MAX_LOADS = 10_000

/** A question of the main thread. */
export type Question = Extract<ToWorker, { readonly kind: 'ask' }>

/** Answers a question: a probe when it has finished, everything else at once. */
export function answer(
  context: WorkerContext,
  sessions: Sessions,
  question: Question,
  post: (answer: FromWorker) => void,
): void {
  const { id } = question
  const { connections, balancer, outcomes } = context
  switch (question.what) {
    case 'peers':
      return post({ kind: 'peers', id, peers: peersOf(sessions) })
    case 'connections':
      return post({
        kind: 'connections',
        id,
        connections: connections.list(question.limit),
        total: connections.size,
      })
    case 'refusals':
      return post({ kind: 'refusals', id, refusals: connections.refusals() })
    case 'connection':
      return post({ kind: 'connection', id, connection: connections.find(question.connection) })
    case 'ejections':
      return post({ kind: 'ejections', id, ejections: balancer.ejections() })
    case 'loads':
      return post({ kind: 'loads', id, loads: loadsOf(context, question.service) })
    case 'outcomes':
      return post({ kind: 'outcomes', id, outcomes: outcomes.list() })
    case 'probe':
      void probeAll(context, question).then((probes) => post({ kind: 'probes', id, probes }))
      return
    default:
      question satisfies never
  }
}

/** Probes those of the given endpoints that exist. */
function probeAll(
  context: WorkerContext,
  { source, service: name, endpoints }: Extract<Question, { readonly what: 'probe' }>,
): Promise<readonly ProbeResult[]> {
  const service = context.snapshot().services.get(name)
  if (service === undefined) return Promise.resolve([])
  const asked = service.clusters[0].endpoints.filter(({ key }) => endpoints.includes(key))
  return Promise.all(asked.map((endpoint) => probe(context, source, service, endpoint)))
}

/** At most {@link MAX_LOADS}. */
function loadsOf(
  context: WorkerContext,
  name: string | undefined,
): Extract<FromWorker, { kind: 'loads' }>['loads'] {
  const { services } = context.snapshot()
  const asked = name === undefined ? [...services.values()] : [services.get(name)]
  const loads = []
  for (const service of asked)
    for (const endpoint of service?.clusters[0].endpoints ?? []) {
      const standing = context.balancer.peek(endpoint)
      if (standing !== undefined) loads.push({ endpoint: endpoint.key, ...standing })
      if (loads.length >= MAX_LOADS) return loads
    }
  return loads
}

function peersOf({ dialed, accepted }: Sessions): PeerView[] {
  return [
    ...dialed.list().map(({ session, peer, source, destination, address }) =>
      peerView(session, {
        direction: 'outbound',
        source,
        destination,
        spiffeId: peer.spiffeId,
        address: formatAddress(address),
      }),
    ),
    ...[...accepted].map(({ session, peer, destination, address }) =>
      peerView(session, {
        direction: 'inbound',
        source: peer.service,
        destination,
        spiffeId: peer.spiffeId,
        address: address === undefined ? undefined : formatAddress(address),
      }),
    ),
  ]
}

function peerView(
  session: Session,
  parts: Pick<PeerView, 'direction' | 'source' | 'destination' | 'spiffeId' | 'address'>,
): PeerView {
  return {
    ...parts,
    state: session.isRetired ? 'draining' : 'open',
    streams: session.streamCount,
    roundTripMs: session.roundTripMs,
    sentBytes: session.sentBytes,
    receivedBytes: session.receivedBytes,
    ageMs: performance.now() - session.openedAtMs,
  }
}
