/**
 * Makes documents of the aggregator's API for a fleet that does not exist: small with a bit of everything, or as large as
 * wanted. The same options make the same fleet.
 */
import type {
  Coverage,
  FleetDocuments,
  FleetServiceDocument,
  GraphDocument,
  GraphEdge,
  GraphNode,
  GroupBy,
  HistoryDocument,
  HostCounts,
  HostDocument,
  HostEntry,
  InstanceEntry,
  LiveEvent,
  ServiceSummary,
  Traffic,
  WorkloadEntry,
} from '../../src/model/fleet.ts'
import { layersOf, policyOf, quiet, risksOf } from './fleet-words.ts'

/** What fleet. */
export interface FleetOptions {
  readonly services: number
  readonly edges: number
  readonly hosts: number
  /** The time that all documents call now, milliseconds since the epoch. */
  readonly nowMs: number
  readonly notes?: readonly string[]
}

/** Documents by name, as the aggregator would answer with `query`. */
export type Answers = {
  readonly [Name in keyof FleetDocuments]: (
    query: URLSearchParams,
  ) => FleetDocuments[Name] | undefined
}

const zones = ['fra-1', 'fra-2', 'ams-1'] as const

/** A fleet of which documents are made. */
export class ImaginedFleet {
  readonly #options: FleetOptions
  readonly #random: () => number
  readonly #hosts: string[]
  readonly #hostIndexes: ReadonlyMap<string, number>
  readonly #serviceIndexes: ReadonlyMap<string, number>
  #nowMs: number
  #tick = 0
  readonly services: readonly string[]
  readonly pairs: readonly (readonly [string, string])[]

  constructor(options: FleetOptions) {
    this.#options = options
    this.#nowMs = options.nowMs
    this.#random = randomFrom(12_345)
    this.#hosts = Array.from(
      { length: options.hosts },
      (_, index) => `node-${String(index + 1).padStart(2, '0')}`,
    )
    const layers = layersOf(options.services)
    this.services = layers.flat()
    this.#serviceIndexes = indexesOf(this.services)
    this.#hostIndexes = indexesOf(this.#hosts)
    this.pairs = this.#pairsOf(layers)
  }

  /** Another time, at which the figures are a bit other ones. */
  advance(nowMs: number): void {
    this.#nowMs = nowMs
    this.#tick += 1
  }

  /** The answers of an aggregator that knows this fleet. */
  answers(): Answers {
    return {
      overview: () => ({
        coverage: this.#coverage(60_000),
        version: '0.1.0',
        hosts: this.hostCounts(),
        services: this.services.length,
        pairs: this.pairs.length,
        traffic: this.#traffic(1, 0),
        problems: [],
        store: {
          bytes: 2e8,
          maxBytes: 2e9,
          oldest: { seconds: this.#ago(864e5), minutes: this.#ago(1.2e9), hours: null },
        },
      }),
      graph: (query) => this.graph(groupOf(query.get('group')), query.get('at')),
      services: () => ({ coverage: this.#coverage(60_000), services: this.#summaries() }),
      service: (query) => this.#service(query.get('name') ?? ''),
      hosts: () => ({
        coverage: this.#coverage(60_000),
        hosts: this.#hosts.map((name) => this.#host(name)),
      }),
      host: (query) => this.#hostDocument(query.get('name') ?? ''),
      history: (query) => this.#history(query),
      risks: () => ({
        coverage: this.#coverage(60_000),
        risks: this.#hosts.length === 0 ? [] : risksOf(this.services),
      }),
      versions: () => this.#versions(),
    }
  }

  /** One event of the live stream. */
  live(): LiveEvent {
    return { graph: this.graph('service', null), hosts: this.hostCounts() }
  }

  hostCounts(): HostCounts {
    const states = this.#hosts.map((name) => this.#host(name).state)
    const count = (state: string): number => states.filter((other) => other === state).length
    return {
      total: states.length,
      ready: count('ready'),
      degraded: count('degraded'),
      starting: count('starting'),
      draining: count('draining'),
      silent: count('silent'),
      conflicting: count('conflicting'),
    }
  }

  graph(group: GroupBy, at: string | null): GraphDocument {
    const coverage = this.#coverage(group === 'service' ? 5_000 : 60_000, at)
    if (group === 'service')
      return {
        coverage,
        group,
        nodes: this.services.map((name) => this.#node(name)),
        edges: this.pairs.map((pair, index) => this.#edge(pair, index)),
        omitted: 0,
      }
    const nameOf = (service: string): string => {
      const host = this.#hostsOf(service)[0] ?? ''
      return group === 'host' ? host : group === 'zone' ? this.#zoneOf(host) : 'dc1'
    }
    const nodes = new Map<string, GraphNode>()
    for (const service of this.services) {
      const id = nameOf(service)
      const before = nodes.get(id)
      nodes.set(id, {
        id,
        health: 'healthy',
        instances: (before?.instances ?? 0) + 1,
        hosts: [...new Set([...(before?.hosts ?? []), ...this.#hostsOf(service)])],
        reasons: [],
      })
    }
    const edges = new Map<string, GraphEdge>()
    for (const [index, pair] of this.pairs.entries()) {
      const [source, destination] = [nameOf(pair[0]), nameOf(pair[1])]
      edges.set(`${source} ${destination}`, { ...this.#edge(pair, index), source, destination })
    }
    return { coverage, group, nodes: [...nodes.values()], edges: [...edges.values()], omitted: 0 }
  }

  #indexOf(service: string): number {
    return this.#serviceIndexes.get(service) ?? -1
  }

  #hostIndexOf(host: string): number {
    return this.#hostIndexes.get(host) ?? -1
  }

  #coverage(windowMs: number, at: string | null = null): Coverage {
    const silent = this.#hosts.filter((name) => this.#host(name).state === 'silent').length
    return {
      at: at ?? this.#ago(0),
      windowMs,
      live: at === null,
      hosts: this.#hosts.length,
      reporting: this.#hosts.length - silent,
      notes: this.#options.notes ?? this.#silentNotes(silent),
    }
  }

  #silentNotes(silent: number): readonly string[] {
    return silent === 0
      ? []
      : [
          `${silent} of ${this.#hosts.length} hosts have not reported for 30 s: node-03; its figures are missing`,
        ]
  }

  #ago(ms: number): string {
    return new Date(this.#nowMs - ms).toISOString()
  }

  #pairsOf(layers: readonly (readonly string[])[]): (readonly [string, string])[] {
    const found = new Map<string, readonly [string, string]>()
    const add = (source: string | undefined, destination: string | undefined): void => {
      if (source !== undefined && destination !== undefined && source !== destination)
        found.set(`${source} ${destination}`, [source, destination])
    }
    for (const [index, layer] of layers.entries()) {
      const above = layers[index - 1]
      for (const service of layer) add(this.#oneOf(above ?? []), service)
    }
    for (let tries = 0; tries < 60 * this.#options.edges; tries += 1) {
      if (found.size >= this.#options.edges) break
      const from = Math.floor(this.#random() * (layers.length - 1))
      // Mostly the next layer, at times a later one, seldom back.
      const far = this.#random() < 0.75 ? 1 : this.#random() < 0.9 ? 2 : -1
      add(this.#oneOf(layers[from] ?? []), this.#oneOf(layers[from + far] ?? []))
    }
    return [...found.values()]
  }

  #oneOf(names: readonly string[]): string | undefined {
    return names[Math.floor(this.#random() * names.length)]
  }

  #hostsOf(service: string): string[] {
    const index = this.#indexOf(service)
    const count = index % 5 === 4 ? 1 : 1 + (index % 3)
    return Array.from(
      { length: Math.min(count, this.#hosts.length) },
      (_, instance) => this.#hosts[(index * 2 + instance) % this.#hosts.length] ?? '',
    )
  }

  #zoneOf(host: string): string {
    return zones[this.#hostIndexOf(host) % zones.length] ?? ''
  }

  #node(name: string): GraphNode {
    const index = this.#indexOf(name)
    const hosts = this.#hostsOf(name)
    const health =
      index % 17 === 9
        ? 'failing'
        : index % 11 === 7
          ? 'degraded'
          : index % 23 === 19
            ? 'unknown'
            : 'healthy'
    const reasons = {
      healthy: [],
      degraded: [`1 of ${hosts.length} instances is critical in Consul`],
      failing: ['12% of connections failed in the span: UF'],
      unknown: ['Its host has not reported for 30 s'],
    }
    return { id: name, health, instances: hosts.length, hosts, reasons: reasons[health] }
  }

  #edge([source, destination]: readonly [string, string], index: number): GraphEdge {
    const isDenied = index % 19 === 13
    const isIdle = index % 13 === 11
    const rate = isDenied ? 0 : isIdle ? 0 : 10 ** ((index * 7) % 5) / 12
    const failed = this.#node(destination).health === 'failing' ? 0.12 : index % 9 === 4 ? 0.012 : 0
    return {
      source,
      destination,
      traffic: isIdle
        ? quiet
        : isDenied
          ? { ...quiet, closed: { DENY: 42 }, errorShare: 0 }
          : this.#traffic(rate, failed),
      reporter: index % 4 === 0 ? 'source' : 'destination',
      policy: policyOf(source, destination, index, isDenied),
    }
  }

  #traffic(rate: number, failed: number): Traffic {
    const moved = rate * (1 + 0.15 * Math.sin(this.#tick / 3 + rate))
    const ended = Math.round(moved * 60)
    const bad = Math.round(ended * failed)
    const base = 0.4 + ((rate * 31) % 7)
    return {
      openedPerSecond: moved,
      active: Math.round(moved * 2.2),
      closed: { '-': ended - bad, ...(bad === 0 ? {} : { UF: bad }) },
      errorShare: ended === 0 ? null : failed,
      connectFailures: bad,
      sentBytesPerSecond: moved * 1_800,
      receivedBytesPerSecond: moved * 9_400,
      connectMs: { p50: base, p90: base * 2, p99: base * 6 },
      firstByteMs: { p50: base * 4, p90: base * 9, p99: base * 40 },
      durationMs: { p50: base * 20, p90: base * 90, p99: base * 700 },
    }
  }

  #summary(name: string): ServiceSummary {
    const node = this.#node(name)
    const index = this.#indexOf(name)
    return {
      name,
      protocol: 'tcp',
      instances: node.instances,
      hosts: node.hosts,
      health: node.health,
      reasons: node.reasons,
      inbound: this.#traffic(10 ** (index % 4) / 3, node.health === 'failing' ? 0.12 : 0.001),
      callers: this.pairs.filter(([, destination]) => destination === name).length,
      destinations: this.pairs.filter(([source]) => source === name).length,
    }
  }

  #summaries(): ServiceSummary[] {
    return this.services.map((name) => this.#summary(name))
  }

  #service(name: string): FleetServiceDocument | undefined {
    if (!this.services.includes(name)) return undefined
    const edges = this.pairs.map((pair, index) => this.#edge(pair, index))
    return {
      coverage: this.#coverage(60_000),
      service: this.#summary(name),
      instances: this.#hostsOf(name).map((host) => this.#instance(name, host)),
      callers: edges.filter(({ destination }) => destination === name),
      destinations: edges.filter(({ source }) => source === name),
      policy: {
        defaultAction: 'deny',
        intentions: [
          { source: 'checkout', destination: name, action: 'allow', precedence: 9, used: 12_400 },
          { source: 'legacy-batch', destination: name, action: 'allow', precedence: 9, used: 0 },
          { source: '*', destination: name, action: 'deny', precedence: 8, used: null },
        ],
      },
    }
  }

  #instance(service: string, host: string): InstanceEntry {
    const index = this.#indexOf(service)
    return {
      host,
      id: `${service}-1`,
      target: index % 6 === 0 ? null : `127.0.0.1:${8_000 + index}`,
      captured: index % 10 !== 8,
      health: this.#node(service).health === 'degraded' ? 'critical' : 'passing',
      certificateNotAfter: new Date(
        this.#nowMs + (index % 7 === 3 ? 2_000_000 : 2.1e8),
      ).toISOString(),
      hostState: this.#host(host).state,
      resources: this.#workload(service),
    }
  }

  #workload(service: string): WorkloadEntry {
    const index = this.#indexOf(service) + 1
    return {
      service,
      cpu: (index % 9) / 11,
      memoryBytes: 3e7 * (1 + (index % 12)),
      tasks: 4 + index,
      sockets: 12 * index,
      cpuPressure: (index % 4) / 100,
      memoryPressure: 0,
      ioPressure: (index % 7) / 250,
    }
  }

  #host(name: string): HostEntry {
    const index = this.#hostIndexOf(name)
    const state = index === 2 ? 'silent' : index === 5 ? 'degraded' : 'ready'
    return {
      name,
      state,
      lastReportAt: this.#ago(state === 'silent' ? 94_000 : 400),
      lateMs: index === 7 ? 312_000 : 800,
      lostRecords: index === 2 ? 4 : 0,
      version: index === 4 ? '0.0.9' : '0.1.0',
      datacenter: 'dc1',
      zone: this.#zoneOf(name),
      services: this.services.filter((service) => this.#hostsOf(service).includes(name)),
      problems:
        index === 5
          ? [
              {
                code: 'HM_CAPTURE_OUT_OF_SYNC',
                message: 'The rules in the kernel are not those that were applied',
                blocks: true,
              },
            ]
          : [],
      clockOffsetMs: index === 6 ? 4_200 : index * 3 - 8,
      cpu: 0.03 + index / 200,
      memoryBytes: 7.2e7 + index * 2e6,
    }
  }

  #hostDocument(name: string): HostDocument | undefined {
    if (!this.#hosts.includes(name)) return undefined
    const host = this.#host(name)
    const services = host.services
    return {
      coverage: this.#coverage(60_000),
      host,
      startedAt: this.#ago(2.3e8),
      nodeVersion: '24.21.0',
      workers: 1,
      capture: {
        mode: 'on',
        backend: 'nftables',
        inSync: host.state !== 'degraded',
        plainInbound: this.#hostIndexOf(name) === 1 ? 17 : 0,
      },
      tunnels: { sessions: 14, peers: 7 },
      services: services.map((service) => this.#instance(service, name)),
      workloads: services.map((service) => this.#workload(service)),
      edges: this.pairs
        .map((pair, index) => this.#edge(pair, index))
        .filter(
          ({ source, destination }) => services.includes(source) || services.includes(destination),
        ),
      counters: { hostmesh_tunnel_handshakes: 3, hostmesh_dns_queries: 1_840 },
    }
  }

  #history(query: URLSearchParams): HistoryDocument {
    const to = Date.parse(query.get('to') ?? '') || this.#nowMs
    const from = Date.parse(query.get('from') ?? '') || to - 3_600_000
    const stepMs = to - from <= 7_200_000 ? 10_000 : to - from <= 9e7 ? 60_000 : 3_600_000
    const count = Math.min(2_000, Math.floor((to - from) / stepMs))
    const at = Array.from({ length: count }, (_, index) => from + (index + 1) * stepMs)
    const isOutage = (ms: number): boolean => wave(ms, 3_100_000) > 0.97
    const value = (of: (ms: number) => number): (number | null)[] =>
      at.map((ms) => (wave(ms, 5_300_000) < -0.998 ? null : of(ms)))
    const rate = (ms: number): number => 320 + 90 * wave(ms, 1_900_000) + 25 * wave(ms, 71_000)
    const slow = (ms: number): number => (isOutage(ms) ? 6 : 1)
    return {
      coverage: this.#coverage(to - from),
      stepMs,
      at: at.map((ms) => new Date(ms).toISOString()),
      series: {
        openedPerSecond: value(rate),
        errorsPerSecond: value((ms) => (isOutage(ms) ? rate(ms) * 0.11 : 0)),
        deniedPerSecond: value((ms) => (wave(ms, 900_000) > 0.99 ? 4 : 0)),
        active: value((ms) => rate(ms) * 2.3),
        sentBytesPerSecond: value((ms) => rate(ms) * 1_800),
        receivedBytesPerSecond: value((ms) => rate(ms) * 9_400),
        connectP50Ms: value((ms) => 0.6 + 0.1 * wave(ms, 400_000)),
        connectP99Ms: value((ms) => slow(ms) * (4 + wave(ms, 300_000))),
        firstByteP50Ms: value((ms) => 5 + wave(ms, 700_000)),
        firstByteP99Ms: value((ms) => slow(ms) * (48 + 12 * wave(ms, 260_000))),
      },
      missing: at.map((ms) => (wave(ms, 4_100_000) > 0.985 ? 2 : 0)),
    }
  }

  #versions(): FleetDocuments['versions'] {
    const old = this.#hosts.filter((name) => this.#host(name).version === '0.0.9')
    const now = this.#hosts.filter((name) => this.#host(name).version === '0.1.0')
    const mixed = this.pairs.filter(([source, destination]) => {
      const sides = [source, destination].map((name) =>
        this.#hostsOf(name).some((host) => old.includes(host)),
      )
      return sides[0] !== sides[1]
    })
    return {
      coverage: this.#coverage(60_000),
      versions: [
        ...(now.length === 0 ? [] : [{ version: '0.1.0', hosts: now }]),
        ...(old.length === 0 ? [] : [{ version: '0.0.9', hosts: old }]),
      ],
      mixedPairs: mixed.map(([source, destination]) => ({
        source,
        destination,
        versions: ['0.0.9', '0.1.0'],
      })),
    }
  }
}

function indexesOf(names: readonly string[]): ReadonlyMap<string, number> {
  return new Map(names.map((name, index) => [name, index]))
}

function groupOf(text: string | null): GroupBy {
  return text === 'host' || text === 'zone' || text === 'datacenter' ? text : 'service'
}

function wave(ms: number, periodMs: number): number {
  return Math.sin((2 * Math.PI * ms) / periodMs)
}

function randomFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return state / 2 ** 32
  }
}
