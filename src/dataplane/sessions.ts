/**
 * The tunnels of a worker: those that it has dialed, and those that peers have opened.
 *
 * Decides which peers are accepted, passes their streams and connections on, and ends tunnels whose certificates are no
 * longer trusted.
 */
import { MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { canonicalIp } from '../model/address.ts'
import type { SessionEnd, WorkerCounters } from '../telemetry/counters.ts'
import { resetOnClose } from './io/linger.ts'
import { SocketStream } from './io/socket-stream.ts'
import { watchTlsEnd } from './io/tls-end.ts'
import type { WorkerSettings } from './protocol.ts'
import type { Arrival, ArrivingStream } from './proxy/inbound.ts'
import type { PressureWatch } from './proxy/pressure.ts'
import type { AcceptedPeer } from './tunnel/accept.ts'
import type { Accounts } from './tunnel/accounts.ts'
import type { Credentials } from './tunnel/credentials.ts'
import { isViolation } from './tunnel/frame.ts'
import { type InboundSession, InboundSessions } from './tunnel/inbound-sessions.ts'
import { TunnelPool } from './tunnel/pool.ts'
import { Session, type SessionOwner } from './tunnel/session.ts'
import { type CertificatePair, endOf } from './tunnel/trust.ts'

/** How many tunnels are retired per tick: a new leaf must not cause the handshakes of all callers at once. */
const MAX_RETIRED_PER_TICK = 100

/**
 * A tunnel that ends within this time without a stream counts as an unsuccessful handshake; one that lives longer was
 * kept for later use. Milliseconds.
 */
const UNUSED_MS = 30_000

/** How the end of a session is counted; other codes count as `lost`, or as a violation of the protocol. */
const endByCode: Partial<Record<string, SessionEnd>> = {
  HM_TUNNEL_DRAINED: 'drained',
  HM_TUNNEL_EXPIRED: 'expired',
  HM_TLS_REVOKED: 'revoked',
  HM_TLS_UNTRUSTED: 'untrusted',
  HM_TUNNEL_SILENT: 'silent',
}

/** What the tunnels need from their worker, and the handlers of what arrives. */
export interface SessionsOptions {
  readonly settings: WorkerSettings
  readonly log: Log
  readonly credentials: Credentials
  readonly accounts: Accounts
  readonly counters: WorkerCounters
  readonly pressure: PressureWatch
  /** Called when a peer has opened a stream. */
  readonly onStream: (arrival: ArrivingStream) => void
  /** Called when a Connect peer has made a connection. */
  readonly onConnection: (arrival: Arrival) => void
}

/** The tunnels of one worker. */
export class Sessions {
  readonly dialed: TunnelPool
  readonly accepted: InboundSessions
  private readonly options: SessionsOptions
  private draining = false

  constructor(options: SessionsOptions) {
    const { credentials, accounts, counters } = options
    const { limits, timeouts } = options.settings
    this.options = options
    this.accepted = new InboundSessions({
      perPlace: limits.tunnelsPerPeer,
      perHost: limits.tunnelsPerHost,
      idleMs: timeouts.tunnelIdleMs,
    })
    this.dialed = new TunnelPool({
      maxStreams: limits.streamsPerTunnel,
      keepaliveMs: timeouts.keepaliveMs,
      idleMs: timeouts.tunnelIdleMs,
      ...this.observer(),
      rejectionReason: (certificates, credential) =>
        credentials.handshakeRejectionReason(certificates, credential.trusted),
      lane: (source, destination) => {
        const nowMs = performance.now()
        return accounts.of(source, nowMs).lane(destination, nowMs)
      },
      onDialed: (outcome) =>
        counters.inc(outcome === 'failed' ? 'tunnelHandshakeFailures' : 'tunnelHandshakes'),
      onClosed: (reason) => this.noteClosed(reason),
    })
  }

  /** Whether the host no longer accepts new connections. */
  get isDraining(): boolean {
    return this.draining
  }

  /** Why a peer is rejected at present: it has violated the protocol too often, or has too many tunnels. */
  rejectionReason({ peer, destination, socket, isTunnel }: AcceptedPeer): MeshError | undefined {
    const nowMs = performance.now()
    const ip = canonicalIp(socket.remoteAddress ?? '')
    const lane = this.options.accounts.of(peer.spiffeId, nowMs, ip ?? '').lane(destination, nowMs)
    const bannedMs = lane.bannedForMs(nowMs, ip)
    if (bannedMs > 0)
      return new MeshError(
        'HM_TUNNEL_BANNED',
        `Refused ${peer.service} -> ${destination} from ${ip ?? 'there'} for ${Math.ceil(bannedMs / 1_000)} s more: it broke the tunnel protocol too often`,
      )
    if (!isTunnel) return undefined
    return this.accepted.rejectionReason({ peer, destination, lane, ip }, nowMs)
  }

  /** Accepts a peer. */
  accept(accepted: AcceptedPeer): void {
    const { socket, peer, destination, serverName, own, isTunnel, noteUnsuccessful } = accepted
    const { settings, accounts, counters, onStream, onConnection } = this.options
    const certificates: CertificatePair = { peer, own: own.proof }
    const ip = canonicalIp(socket.remoteAddress ?? '')
    const address = ip === undefined ? undefined : { ip, port: socket.remotePort ?? 0 }
    const nowMs = performance.now()
    const lane = accounts.of(peer.spiffeId, nowMs, ip ?? '').lane(destination, nowMs)
    counters.inc('tunnelHandshakes')
    if (!isTunnel) {
      resetOnClose(socket)
      watchTlsEnd(socket)
      const stream = new SocketStream(socket, 'private')
      stream.chargeTo(lane.account)
      const arrival = { stream, peer, lane, address, destination, serverName, certificates }
      onConnection({ ...arrival, arrivedMs: nowMs })
      return
    }
    let isUsed = false
    const session = new Session(
      socket,
      'acceptor',
      {
        ...this.observer(),
        onStream: (stream) => {
          isUsed = true
          counters.inc('tunnelStreamsOpened')
          onStream({
            stream,
            peer,
            lane,
            address,
            destination,
            serverName,
            certificates: undefined,
            arrivedMs: performance.now(),
          })
        },
        onClosed: (reason) => {
          this.accepted.delete(inbound)
          if (!isUsed && performance.now() - session.openedAtMs < UNUSED_MS) noteUnsuccessful()
          this.noteClosed(reason)
        },
      },
      {
        maxStreams: settings.limits.streamsPerTunnel,
        keepaliveMs: settings.timeouts.keepaliveMs,
        lane,
        peerIp: ip,
      },
    )
    const inbound: InboundSession = {
      session,
      peer,
      destination,
      address,
      lane,
      certificates,
      notAfterMs: endOf(certificates),
    }
    this.accepted.add(inbound)
    if (this.draining) session.drain()
  }

  /** Closes the tunnels for which `rejectionReason` returns an error. */
  endWhere(rejectionReason: (certificates: CertificatePair) => MeshError | undefined): void {
    for (const { session, certificates } of [...this.dialed.list(), ...this.accepted]) {
      const reason = rejectionReason(certificates)
      if (reason !== undefined) session.close(reason)
    }
  }

  /** To be called once a second. `nowMs` monotonic, `wallMs` wall clock. */
  tick(nowMs: number, wallMs: number): void {
    const { credentials, counters } = this.options
    this.dialed.tick(nowMs, wallMs)
    this.accepted.tick(nowMs)
    let streams = 0
    let retired = 0
    for (const { session, destination, certificates, notAfterMs } of this.accepted) {
      session.tick(nowMs)
      streams += session.streamCount
      if (wallMs >= notAfterMs) session.expire()
      else if (
        retired < MAX_RETIRED_PER_TICK &&
        !session.isRetired &&
        !credentials.isCurrent(destination, certificates.own.serialNumber)
      ) {
        session.retire()
        retired += 1
      }
    }
    const dialed = this.dialed.list()
    for (const { session } of dialed) streams += session.streamCount
    counters.set('tunnelSessionsActive', this.accepted.size + dialed.length)
    counters.set('tunnelStreamsActive', streams)
  }

  /** Asks callers to dial the next process; what they have sent already is still served. */
  retire(): void {
    for (const { session } of this.accepted) session.retire()
  }

  /** Accepts no new connections; tunnels close when their streams end. @returns the present tunnels. */
  drain(): readonly Session[] {
    this.draining = true
    const sessions = [...this.dialed.list(), ...this.accepted].map(({ session }) => session)
    this.dialed.drain()
    for (const session of sessions) session.drain()
    return sessions
  }

  private observer(): Pick<SessionOwner, 'onRoundTrip' | 'onStreamReset' | 'onStreamShed'> {
    const { counters, pressure } = this.options
    return {
      onStreamShed: (limit) => pressure.note(limit),
      onRoundTrip: (tookMs) => counters.roundTrip(tookMs),
      onStreamReset: () => counters.inc('tunnelStreamsReset'),
    }
  }

  private noteClosed(reason: MeshError): void {
    const { counters, log } = this.options
    const violates = isViolation(reason.code)
    counters.sessionClosed(endByCode[reason.code] ?? (violates ? 'violation' : 'lost'))
    if (reason.code === 'HM_TUNNEL_DRAINED') return
    if (violates) counters.inc('protocolErrors')
    log.info('Tunnel closed', { code: reason.code, reason: reason.message })
  }
}
