/**
 * The messages between the main thread and a data-plane worker. Plain data: it crosses a thread boundary by structured
 * clone, in order.
 */
import type { ErrorCode } from '../lib/errors.ts'
import type { SocketAddress } from '../model/address.ts'
import type { Leaf, TrustBundle } from '../model/certificate.ts'
import type { LocalService } from '../model/service.ts'
import type { SnapshotDelta } from '../model/snapshot.ts'
import type { TrafficLabels } from '../telemetry/counters.ts'
import type { Ejection } from './balance/outlier.ts'
import type { EndpointStanding } from './balance/picker.ts'
import type { AccessLogSettings } from './proxy/access-log.ts'
import type { ConnectionView } from './proxy/connection.ts'
import type { OutcomeView } from './proxy/outcomes.ts'
import type { Pressure } from './proxy/pressure.ts'
import type { ProbeResult } from './proxy/probe.ts'
import type { Refusal } from './proxy/refusals.ts'

/** The settings that a worker is started with. Times in milliseconds. */
export interface WorkerSettings {
  readonly id: number
  readonly datacenter: string
  readonly services: readonly LocalService[]
  /** Whether to listen on the capture ports. */
  readonly captures: boolean
  /** Addresses on which the capture ports listen. */
  readonly captureAddresses: readonly string[]
  /** Whether diverted connections arrive with their original destination address. */
  readonly capturesTransparently: boolean
  readonly tunnel: SocketAddress
  readonly inboundMinVersion: '1.2' | '1.3'
  readonly timeouts: {
    readonly connectMs: number
    readonly handshakeMs: number
    readonly idleMs: number
    readonly halfClosedMs: number
    readonly tunnelIdleMs: number
    readonly keepaliveMs: number
  }
  readonly limits: {
    readonly connections: number
    readonly connectionsPerService: number
    readonly inboundConnections: number
    readonly inboundConnectionsPerService: number
    readonly streamsPerTunnel: number
    readonly tunnels: number
    readonly tunnelsPerPeer: number
    /** For all identities of one host together, in this worker. */
    readonly tunnelsPerHost: number
    readonly pendingHandshakes: number
    readonly pendingHandshakesPerAddress: number
    readonly handshakesPerAddress: number
    /** This worker's share of the memory for buffered bytes. */
    readonly heldBytes: number
    /** This worker's share of the process's file descriptors. */
    readonly descriptors: number
  }
  /** How often to report the services in use. */
  readonly reportUseMs: number
  readonly log: {
    readonly level: 'debug' | 'info' | 'warn' | 'error'
    readonly format: 'json' | 'logfmt' | 'text'
  }
  /** Undefined while it is off. */
  readonly accessLog: AccessLogSettings | undefined
  /** Prefix of the numbers of this thread's connections. */
  readonly idPrefix: string
  readonly trafficMemory: SharedArrayBuffer
  readonly workerMemory: SharedArrayBuffer
}

/** A listening socket that a worker accepts from, with the name of its listener. The main thread keeps it open. */
export interface WorkerSocket {
  readonly name: string
  readonly fd: number
}

/** From the main thread to a worker. */
export type ToWorker =
  | { readonly kind: 'snapshot'; readonly delta: SnapshotDelta }
  | { readonly kind: 'leaf'; readonly leaf: Leaf }
  | { readonly kind: 'roots'; readonly bundle: TrustBundle }
  | { readonly kind: 'listen'; readonly sockets: readonly WorkerSocket[] }
  /** A connection of the main thread to a service; the worker owns the descriptor, one end of a socket pair. */
  | {
      readonly kind: 'dial'
      readonly fd: number
      readonly caller: string
      readonly destination: string
    }
  /**
   * `stop`: new connections are refused. `restart`: new connections are accepted until the present ones have ended or
   * the deadline has passed; then they wait for the next process. `handOver`: another process accepts them already. A
   * further message can bring the deadline forward.
   */
  | {
      readonly kind: 'drain'
      readonly deadlineMs: number
      readonly why: 'stop' | 'restart' | 'handOver'
    }
  /** So many bytes of `accessLines` are written, or lost. */
  | { readonly kind: 'accessWritten'; readonly bytes: number }
  | { readonly kind: 'ask'; readonly id: number; readonly what: 'peers' | 'ejections' }
  /** At most `limit` connections are listed; all are counted. */
  | {
      readonly kind: 'ask'
      readonly id: number
      readonly what: 'connections'
      readonly limit: number
    }
  | { readonly kind: 'ask'; readonly id: number; readonly what: 'refusals' | 'outcomes' }
  /** Asks the daemons of instances, given by key, what would happen to a connection. */
  | {
      readonly kind: 'ask'
      readonly id: number
      readonly what: 'probe'
      readonly source: string
      readonly service: string
      readonly endpoints: readonly string[]
    }
  /** One open connection. */
  | {
      readonly kind: 'ask'
      readonly id: number
      readonly what: 'connection'
      readonly connection: number
    }
  /** What the balancer has measured of the endpoints of one service, or of all when it is undefined. */
  | {
      readonly kind: 'ask'
      readonly id: number
      readonly what: 'loads'
      readonly service: string | undefined
    }

/** From a worker to the main thread. */
export type FromWorker =
  /** The thread runs and accepts messages. */
  | { readonly kind: 'started' }
  | { readonly kind: 'listening' }
  | {
      readonly kind: 'cannotListen'
      readonly code: ErrorCode
      readonly message: string
      readonly hint: string | undefined
    }
  | { readonly kind: 'row'; readonly row: number; readonly labels: TrafficLabels }
  | { readonly kind: 'drained' }
  /** The worker owns the descriptor of a `dial` now. */
  | { readonly kind: 'dialed'; readonly fd: number }
  /** Lines of the access log for its file: ASCII, each with its newline. */
  | { readonly kind: 'accessLines'; readonly text: string; readonly lines: number }
  /** An application dialed this address, and the snapshot has no service there. */
  | { readonly kind: 'wanted'; readonly address: SocketAddress }
  /** Services that local applications have called since the last message, or have open connections to. */
  | { readonly kind: 'used'; readonly services: readonly string[] }
  /** Sent every second, as proof that the event loop turns. `pressure` reports which resources are short. */
  | { readonly kind: 'alive'; readonly pressure: Pressure }
  | { readonly kind: 'peers'; readonly id: number; readonly peers: readonly PeerView[] }
  | { readonly kind: 'ejections'; readonly id: number; readonly ejections: readonly Ejection[] }
  | {
      readonly kind: 'connections'
      readonly id: number
      readonly connections: readonly ConnectionView[]
      readonly total: number
    }
  | { readonly kind: 'refusals'; readonly id: number; readonly refusals: readonly Refusal[] }
  | { readonly kind: 'outcomes'; readonly id: number; readonly outcomes: readonly OutcomeView[] }
  | { readonly kind: 'probes'; readonly id: number; readonly probes: readonly ProbeResult[] }
  | {
      readonly kind: 'connection'
      readonly id: number
      readonly connection: ConnectionView | undefined
    }
  | {
      readonly kind: 'loads'
      readonly id: number
      readonly loads: readonly (EndpointStanding & { readonly endpoint: string })[]
    }

/** One tunnel as the admin API shows it. */
export interface PeerView {
  readonly direction: 'outbound' | 'inbound'
  readonly source: string
  readonly destination: string
  readonly address: string | undefined
  readonly spiffeId: string
  readonly state: 'open' | 'draining'
  readonly streams: number
  readonly roundTripMs: number | undefined
  readonly sentBytes: number
  readonly receivedBytes: number
  /** Milliseconds since it was opened. */
  readonly ageMs: number
}
