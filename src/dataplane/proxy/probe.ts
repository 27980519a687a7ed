/**
 * Probes: asks the destination's own daemon what would happen to a connection, without connecting to the application.
 * docs/tunnel-protocol.md, "Probe". Both sides are here: `answerProbe` for the destination, `probe` for the caller.
 */
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'
import { isListening } from '../../lib/listening.ts'
import { formatAddress } from '../../model/address.ts'
import type { Endpoint } from '../../model/endpoint.ts'
import { evaluate } from '../../model/evaluate.ts'
import type { ResponseFlag } from '../../model/response-flag.ts'
import type { MeshService } from '../../model/snapshot.ts'
import type { Receiver } from '../io/byte-stream.ts'
import type { Account } from '../tunnel/accounts.ts'
import { encodePreface } from '../tunnel/preface.ts'
import {
  encodeProbeAnswer,
  MAX_ANSWER_BYTES,
  type ProbeAnswer,
  readProbeAnswer,
} from '../tunnel/probe-answer.ts'
import type { Session } from '../tunnel/session.ts'
import { StreamResetError, type TunnelStream } from '../tunnel/stream.ts'
import { flagOf } from './ending.ts'
import { awaitPolicy, isPolicyAwaited, type WorkerContext } from './worker-context.ts'

/** How long one probe may take, and how long an answered stream may stay open, milliseconds. */
const PROBE_MS = 5_000

/** How long a failed delivery counts against an application without a later connection, milliseconds. */
const DELIVERY_MEMORY_MS = 300_000

/** A Connect peer that rejects our certificate reports it after the handshake: wait this long for it, milliseconds. */
const REFUSAL_MS = 500

/** The connection that a probe asks about. */
interface Asked {
  readonly direction: 'inbound' | 'outbound'
  readonly source: string
  readonly account: Account
  readonly destination: string
  /** Service ID; undefined means any instance. */
  readonly instance: string | undefined
}

/** Answers an inbound probe. Never rejects. */
export async function answerProbe(
  context: WorkerContext,
  stream: TunnelStream,
  asked: Asked,
): Promise<void> {
  if (!context.probes.take(asked.source, asked.account.origin?.name ?? '', performance.now())) {
    stream.refuse('overloaded')
    return
  }
  const deadline = setTimeout(() => stream.refuse('timeout'), PROBE_MS)
  const over = (): void => clearTimeout(deadline)
  stream.receiver = {
    onBytes: () => 0,
    onEnd: () => undefined,
    onClosed: over,
    onReset: over,
    onWritable: () => undefined,
  }
  stream.resume()
  try {
    const answer = await judge(context, asked)
    stream.confirm()
    stream.write(encodeProbeAnswer(answer))
    stream.end()
  } catch (error) {
    const { source, destination, instance } = asked
    const details = { source, destination, instance, error: describeError(error) }
    context.log.warn('Cannot answer a probe', details)
    stream.refuse('aborted')
  }
}

/** What would happen to a connection, checked in the same order as for a real one. */
async function judge(context: WorkerContext, asked: Asked): Promise<ProbeAnswer> {
  const { direction, source, account, destination, instance } = asked
  if (isPolicyAwaited(context, destination)) await awaitPolicy(context, destination)
  const decision = evaluate(source, context.snapshot().policies.get(destination))
  if (!decision.allow) return { verdict: 'denied', application: 'unknown', reason: '' }
  if (!context.connections.hasRoom(direction, source, account))
    return {
      verdict: 'overloaded',
      application: 'unknown',
      reason: 'A limit of connections is reached',
    }
  const target = context.localInstance(destination, instance)?.target
  if (target === undefined)
    return {
      verdict: 'unknownService',
      application: 'unknown',
      reason: `The configuration of the host has no ${instance ?? destination}`,
    }
  const address = formatAddress(target)
  const listens = await isListening(target.ip, target.port)
  if (listens === false)
    return {
      verdict: 'unreachable',
      application: 'silent',
      reason: `Nobody listens at ${address}: is the application running?`,
    }
  const application = listens === true ? 'listens' : 'unknown'
  const failure = context.outcomes.lastUndelivered(address, DELIVERY_MEMORY_MS)
  if (failure === undefined) return { verdict: 'delivered', application, reason: '' }
  return { verdict: 'unreachable', application, reason: failure.reason }
}

/** The result of a probe of one instance. */
export interface ProbeResult {
  readonly endpoint: string
  /**
   * `answered`: its daemon reported what would happen. `handshake`: a Connect peer, for which only the TLS handshake is
   * proved. `old`: a daemon was reached that does not support probes. `failed`: there was no answer.
   */
  readonly kind: 'answered' | 'handshake' | 'old' | 'failed'
  readonly answer: ProbeAnswer | undefined
  /** For `failed`. */
  readonly flag: ResponseFlag | undefined
  readonly code: string | undefined
  readonly reason: string
  readonly tookMs: number
  readonly timing: ProbeTiming
}

/** Where the time of a probe went; undefined parts were not reached. */
interface ProbeTiming {
  /** `here`: the instance is on this host. `open`: a tunnel was open. `new`: one was dialed. */
  tunnel: 'here' | 'open' | 'new' | undefined
  /** For a new tunnel: TCP connection and TLS handshake, milliseconds. */
  dialMs: number | undefined
  /** The last measured round trip of the tunnel, milliseconds. */
  roundTripMs: number | undefined
  /** From the question in the tunnel to the answer, milliseconds: a round trip, and the decision. */
  answerMs: number | undefined
}

/** Asks the daemon of one instance what would happen to a connection of `source`. Never rejects. */
export async function probe(
  context: WorkerContext,
  source: string,
  service: MeshService,
  endpoint: Endpoint,
): Promise<ProbeResult> {
  const startedMs = performance.now()
  const timing: ProbeTiming = {
    tunnel: undefined,
    dialMs: undefined,
    roundTripMs: undefined,
    answerMs: undefined,
  }
  const result = (parts: Partial<ProbeResult> & Pick<ProbeResult, 'kind'>): ProbeResult => ({
    endpoint: endpoint.key,
    answer: undefined,
    flag: undefined,
    code: undefined,
    reason: '',
    tookMs: performance.now() - startedMs,
    timing,
    ...parts,
  })
  try {
    const answer = endpoint.local
      ? await askHere(context, source, endpoint, timing)
      : await ask(context, source, { service, endpoint }, timing)
    return typeof answer === 'string'
      ? result({ kind: answer })
      : result({ kind: 'answered', answer, reason: answer.reason })
  } catch (error) {
    if (error instanceof StreamResetError && error.reason === 'malformed')
      return result({ kind: 'old' })
    return result({
      kind: 'failed',
      flag: flagOf(error),
      code: errorCode(error),
      reason: describeError(error),
    })
  }
}

async function askHere(
  context: WorkerContext,
  source: string,
  endpoint: Endpoint,
  timing: ProbeTiming,
): Promise<ProbeAnswer> {
  timing.tunnel = 'here'
  const startedMs = performance.now()
  const answer = await judge(context, {
    direction: 'outbound',
    source,
    account: context.localAccount(source),
    destination: endpoint.service,
    instance: endpoint.id,
  })
  timing.answerMs = performance.now() - startedMs
  return answer
}

async function ask(
  context: WorkerContext,
  source: string,
  { service, endpoint }: { readonly service: MeshService; readonly endpoint: Endpoint },
  timing: ProbeTiming,
): Promise<ProbeAnswer | 'handshake'> {
  const credential = context.credentials.of(source)
  if (credential === undefined)
    throw new MeshError(
      'HM_TLS_NOT_READY',
      `Cannot call as ${source}: ${context.credentials.unavailableReason(source)}`,
    )
  const request = {
    source,
    destination: endpoint.service,
    datacenter: endpoint.datacenter,
    address: endpoint.tunnel,
    credential,
    timeoutMs: Math.min(PROBE_MS, context.timeouts.connectMs, service.clusters[0].connectTimeoutMs),
  }
  const ready = context.pool.ready(request)
  timing.tunnel = ready === undefined ? 'new' : 'open'
  const dialedMs = performance.now()
  const reached = ready ?? (await context.pool.reach(request))
  const reachedMs = performance.now()
  if (ready === undefined) timing.dialMs = reachedMs - dialedMs
  if (reached.kind === 'session') {
    const answer = await askStream(reached.session, endpoint)
    timing.answerMs = performance.now() - reachedMs
    // A new session sends a ping before anything else, so its round trip is known by now.
    timing.roundTripMs = reached.session.roundTripMs
    return answer
  }
  const { socket } = reached
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject)
      setTimeout(resolve, REFUSAL_MS)
    })
    return 'handshake'
  } finally {
    socket.on('error', () => undefined)
    socket.destroy()
  }
}

function askStream(session: Session, endpoint: Endpoint): Promise<ProbeAnswer> {
  const stream = session.open(
    encodePreface({
      source: undefined,
      destination: undefined,
      instance: endpoint.id,
      isProbe: true,
      traceparent: undefined,
    }),
  )
  return new Promise((resolve, reject) => {
    let bytes = Buffer.alloc(0)
    const settle = (outcome: ProbeAnswer | Error): void => {
      clearTimeout(deadline)
      stream.reset()
      if (outcome instanceof Error) reject(outcome)
      else resolve(outcome)
    }
    const noAnswer = (why: string): void =>
      settle(
        new MeshError('HM_PROBE_UNANSWERED', `${endpoint.key} did not answer the probe: ${why}`),
      )
    const deadline = setTimeout(() => noAnswer(`nothing came in ${PROBE_MS} ms`), PROBE_MS)
    const receiver: Receiver = {
      onBytes: (chunk) => {
        bytes = Buffer.concat([bytes, chunk])
        if (bytes.length > MAX_ANSWER_BYTES) noAnswer('what came is no answer')
        return 0
      },
      onEnd: () => {
        const answer = readProbeAnswer(bytes)
        if (answer === undefined) noAnswer('what came is no answer')
        else settle(answer)
      },
      onClosed: () => undefined,
      onReset: settle,
      onWritable: () => undefined,
    }
    stream.receiver = receiver
    stream.end()
    stream.resume()
  })
}
