/**
 * Asks for the documents of the pages, each once a second, and takes the times of the answers.
 */
import { cpuMicroseconds } from '../measure/proc.ts'
import type { AggregatorProcess } from './aggregator-process.ts'
import { type FleetSize, pairAt } from './simulated-host.ts'

/** The times of one document, milliseconds. */
export interface DocumentTimes {
  readonly answers: number
  /** Answers with another status than 200, or none. */
  readonly failures: number
  readonly p50: number
  readonly p95: number
  readonly p99: number
  readonly bytes: number
}

const EVERY_MS = 1_000

/** Answers of one document that are taken alone. */
const ALONE = 20

/**
 * CPU time that one answer takes while no host reports, milliseconds, all threads of the aggregator together: unlike the
 * times above it says something on a busy machine, too. What is read of the store is kept from one answer to the next,
 * as it is while somebody looks.
 */
export async function cpuOfDocuments(
  aggregator: AggregatorProcess,
  size: FleetSize,
): Promise<Readonly<Record<string, number>>> {
  const used: Record<string, number> = {}
  for (const [name, path] of Object.entries(pathsOf(size))) {
    const before = cpuMicroseconds([aggregator.pid])
    // Each has a query of its own, so that none is given again as it is.
    for (let i = 0; i < ALONE; i += 1)
      await aggregator.ask(`${path}${path.includes('?') ? '' : '?'}${'&'.repeat(i)}`)
    used[name] = Math.round((cpuMicroseconds([aggregator.pid]) - before) / ALONE / 100) / 10
  }
  return used
}

function pathsOf(size: FleetSize): Readonly<Record<string, string>> {
  const { source, destination } = pairAt(size, 0, 0)
  return {
    overview: '/api/v1/overview',
    graph: '/api/v1/graph',
    services: '/api/v1/services',
    hosts: '/api/v1/hosts',
    risks: '/api/v1/risks',
    history: `/api/v1/history?source=${source}&destination=${destination}`,
  }
}

interface Samples {
  readonly path: string
  readonly times: number[]
  failures: number
  bytes: number
}

/** Asks until it is stopped. Documents are spread over the second. */
export class Asker {
  readonly #aggregator: AggregatorProcess
  readonly #samples: ReadonlyMap<string, Samples>
  readonly #timers: NodeJS.Timeout[] = []
  readonly #asking = new Set<Promise<void>>()

  constructor(aggregator: AggregatorProcess, size: FleetSize) {
    this.#aggregator = aggregator
    this.#samples = new Map(
      Object.entries(pathsOf(size)).map(([name, path]) => [
        name,
        { path, times: [], failures: 0, bytes: 0 },
      ]),
    )
  }

  start(): void {
    let waitMs = 0
    for (const samples of this.#samples.values()) {
      const first = setTimeout(() => {
        this.#ask(samples)
        this.#timers.push(setInterval(() => this.#ask(samples), EVERY_MS))
      }, waitMs)
      this.#timers.push(first)
      waitMs += EVERY_MS / this.#samples.size
    }
  }

  /** The times by document. */
  async stop(): Promise<Readonly<Record<string, DocumentTimes>>> {
    for (const timer of this.#timers) clearTimeout(timer)
    await Promise.all(this.#asking)
    return Object.fromEntries(
      Array.from(this.#samples, ([name, { times, failures, bytes }]) => {
        const ascending = times.toSorted((a, b) => a - b)
        const at = (share: number): number =>
          Math.round(ascending[Math.ceil(share * ascending.length) - 1] ?? Number.NaN)
        return [
          name,
          { answers: times.length, failures, p50: at(0.5), p95: at(0.95), p99: at(0.99), bytes },
        ]
      }),
    )
  }

  #ask(samples: Samples): void {
    const asking = this.#take(samples).finally(() => this.#asking.delete(asking))
    this.#asking.add(asking)
  }

  async #take(samples: Samples): Promise<void> {
    const startedMs = performance.now()
    try {
      const { status, bytes } = await this.#aggregator.ask(samples.path)
      if (status !== 200) samples.failures += 1
      samples.bytes = bytes.length
    } catch {
      samples.failures += 1
    }
    samples.times.push(performance.now() - startedMs)
  }
}
