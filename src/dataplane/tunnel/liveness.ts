/**
 * Detects whether the peer of a session is alive: docs/tunnel-protocol.md, "Silent peers". Pings measure the round trip
 * and keep a quiet session alive. Many times a second an opener checks whether streams wait for an unreachable host.
 */
import type { Socket } from 'node:net'
import { MeshError } from '../../lib/errors.ts'
import type { IdMap } from '../io/id-map.ts'
import { sinceLastAckMs } from '../io/tcp-info.ts'
import { PING, SYN } from './frame.ts'
import type { Incoming } from './incoming.ts'
import type { Outgoing } from './outgoing.ts'
import type { TunnelStream } from './stream.ts'

/** Pings at the start, one a tick, with any traffic: the first round trip is never a typical one. */
const FIRST_PINGS = 5

/**
 * A session is suspect when streams wait and nothing has arrived from the peer's host for this many round trips and for
 * at least this time, milliseconds. A lost packet is sent again after 200 ms.
 */
const SUSPECT_ROUND_TRIPS = 8
const SUSPECT_AFTER_MS = 250

/** The same before the first round trip is known. */
const SUSPECT_UNMEASURED_MS = 1_000

/** Accuracy of the kernel's time of the last acknowledgement, milliseconds. */
const ACK_CLOCK_MS = 12

/** Silence after which unanswered streams justify ending a session that still has confirmed ones. Milliseconds. */
const DEAD_AFTER_MS = 3_000

/** The same when the other streams are unconfirmed too, but may have reached the peer. */
const UNSURE_AFTER_MS = 1_000

/** The state of one session's peer. Times are monotonic milliseconds. */
export class Liveness {
  /** Last measured round trip; undefined before the first ping was answered. */
  roundTripMs: number | undefined
  /** Smallest round trip measured: load only ever lengthens it. */
  leastRoundTripMs: number | undefined
  private readonly socket: Socket
  private readonly incoming: Incoming
  private readonly outgoing: Outgoing
  private readonly keepaliveMs: number
  private pingsAnswered = 0
  private pingSentMs: number | undefined
  private pingValue = 0
  private suspectedMs: number | undefined

  constructor(socket: Socket, incoming: Incoming, outgoing: Outgoing, keepaliveMs: number) {
    this.socket = socket
    this.incoming = incoming
    this.outgoing = outgoing
    this.keepaliveMs = keepaliveMs
  }

  /** Whether the peer's host may be unreachable: nothing has arrived since {@link watch} found it silent. */
  get isSuspect(): boolean {
    return this.suspectedMs !== undefined && this.incoming.lastReceivedMs < this.suspectedMs
  }

  /** Sends a ping. */
  ping(nowMs: number): void {
    this.pingSentMs = nowMs
    this.pingValue = (this.pingValue + 1) >>> 0
    this.outgoing.sendControl(PING, SYN, 0, this.pingValue)
  }

  /** A ping was answered. @returns the round trip; undefined when no such ping is outstanding. */
  answered(value: number): number | undefined {
    if (this.pingSentMs === undefined || value !== this.pingValue) return undefined
    this.roundTripMs = performance.now() - this.pingSentMs
    this.pingsAnswered += 1
    this.leastRoundTripMs = Math.min(this.leastRoundTripMs ?? this.roundTripMs, this.roundTripMs)
    this.pingSentMs = undefined
    return this.roundTripMs
  }

  /** Call it once a second: sends a ping when one is due. @returns why the session must end, when no answer came. */
  tick(nowMs: number): MeshError | undefined {
    const { keepaliveMs, pingSentMs } = this
    const { lastReceivedMs } = this.incoming
    if (pingSentMs === undefined) {
      if (nowMs - lastReceivedMs >= keepaliveMs || this.pingsAnswered < FIRST_PINGS)
        this.ping(nowMs)
      return undefined
    }
    // A ping may wait behind bulk; anything that arrives meanwhile counts as its answer.
    if (nowMs - Math.max(pingSentMs, lastReceivedMs) < keepaliveMs) return undefined
    return new MeshError('HM_TUNNEL_SILENT', `The tunnel broke: no answer for ${keepaliveMs} ms`)
  }

  /**
   * Checks whether streams wait for an unreachable host. If so, those that can use another instance (`mayUseAnother`)
   * are given up, but none from which the peer may have seen a byte of the application.
   * @returns why the session must end, when these streams are worth more than the session.
   */
  watch(nowMs: number, all: IdMap<TunnelStream>): MeshError | undefined {
    const silentMs = nowMs - this.incoming.lastReceivedMs
    const patienceMs = this.patienceMs()
    if (silentMs < patienceMs) return undefined
    const streams = all.list()
    const waitsTooLong = (stream: TunnelStream): boolean =>
      !stream.isConfirmed && nowMs - stream.openedMs >= patienceMs
    if (!streams.some(waitsTooLong)) return undefined
    if (this.pingSentMs === undefined) this.ping(nowMs)
    const sinceAckMs = sinceLastAckMs(this.socket)
    if (sinceAckMs === undefined) return undefined
    // A live host acknowledges: then its daemon is slow or not running, and may still read what was sent.
    const arrivedMs = nowMs - sinceAckMs + ACK_CLOCK_MS
    if (!streams.some((stream) => waitsTooLong(stream) && stream.openedMs > arrivedMs))
      return undefined
    this.suspectedMs = nowMs
    return abandonUnseenStreams(streams, arrivedMs, silentMs)
  }

  private patienceMs(): number {
    return this.roundTripMs === undefined
      ? SUSPECT_UNMEASURED_MS
      : Math.max(SUSPECT_AFTER_MS, SUSPECT_ROUND_TRIPS * this.roundTripMs)
  }
}

/** Streams opened after `arrivedMs` have not reached the peer's host. @returns why the session must end, if it must. */
function abandonUnseenStreams(
  streams: readonly TunnelStream[],
  arrivedMs: number,
  silentMs: number,
): MeshError | undefined {
  const unseen = streams.filter(
    (stream) =>
      !stream.isConfirmed && stream.openedMs > arrivedMs && stream.mayUseAnother?.() === true,
  )
  if (unseen.length === 0) return undefined
  const text = `no answer, and no sign of life from the host for ${Math.round(silentMs)} ms`
  const isUnsure = (stream: TunnelStream): boolean =>
    !stream.isConfirmed && stream.openedMs <= arrivedMs
  const unsure = streams.filter(isUnsure).length
  const isWorthAll =
    silentMs >= (unseen.length + unsure < streams.length ? DEAD_AFTER_MS : UNSURE_AFTER_MS)
  if (unseen.length < streams.length && !isWorthAll) {
    // If the host recovered, it would read the application's bytes before it reads the reset.
    for (const stream of unseen)
      if (!stream.hasSentData)
        stream.giveUp(new MeshError('HM_TUNNEL_UNANSWERED', `The stream was left: ${text}`))
    return undefined
  }
  for (const stream of streams)
    if (isUnsure(stream) && stream.hasSentData)
      stream.giveUp(
        new MeshError('HM_TUNNEL_UNSURE', `The tunnel broke, the instance may be reached: ${text}`),
      )
  return new MeshError('HM_TUNNEL_SILENT', `The tunnel broke: ${text}`)
}
