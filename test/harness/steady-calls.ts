/**
 * Calls for as long as something is done to the mesh: did any of them fail, and how long did one wait?
 *
 * {@link keepCalling} makes one after another, {@link keepConnecting} opens new connections at a steady rate whatever
 * becomes of the earlier ones, as the users of a service do. The latter is for the life of a daemon: it counts what was
 * refused and what waited, and its canary is what plaintext-watch.ts looks for.
 */
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'

import { eventually, patient } from './eventually.ts'
import type { Service } from './service.ts'
import { canary } from './wire-capture.ts'
import type { Answer } from './workload-protocol.ts'

/** Calls that go on until the end of the scope. */
export interface SteadyCalls extends AsyncDisposable {
  /** Calls that were answered so far. */
  answered(): number
  /** Waits until this many more were answered, or failed. */
  more(count: number): Promise<void>
  /** Ends the calls. What failed, one line each, with the number of the call. */
  failures(): Promise<readonly string[]>
  /** The instances that answered so far. */
  instances(): ReadonlySet<string>
}

/** Starts to call. A call that fails is noted, and the next one follows. */
export function keepCalling(call: () => Promise<Answer>): SteadyCalls {
  const failed: string[] = []
  const reached = new Set<string>()
  let answered = 0
  const over = new AbortController()

  async function run(): Promise<void> {
    while (!over.signal.aborted) {
      try {
        reached.add((await call()).instance)
        answered += 1
      } catch (error) {
        failed.push(`call ${answered + failed.length}: ${String(error)}`)
      }
    }
  }

  const running = run()
  const end = async (): Promise<void> => {
    over.abort()
    await running
  }
  return {
    answered: () => answered,
    async more(count) {
      const wanted = answered + failed.length + count
      await eventually(
        () => {
          if (answered + failed.length < wanted) throw new Error('Not that many calls yet')
        },
        { withinMs: 60_000 },
      )
    },
    async failures() {
      await end()
      return failed
    },
    instances: () => reached,
    [Symbol.asyncDispose]: end,
  }
}

/** What became of one connection: `served`, or how it failed. Other failures are named by the system's code. */
export type CallOutcome =
  | 'served'
  | 'refused'
  | 'reset'
  | 'timeout'
  | 'cut'
  | 'wrong'
  | `E${string}`

/** One connection of {@link keepConnecting}. */
export interface Call {
  /** It carried the canary, a dash and this number. */
  readonly number: number
  /** `IP:PORT` */
  readonly target: string
  /** Wall clock of its beginning. */
  readonly atMs: number
  readonly outcome: CallOutcome
  /** From its beginning to its answer, or to its failure. */
  readonly waitedMs: number
}

/** What connections come to. */
export interface CallSummary {
  readonly calls: number
  readonly served: number
  /** Answered by a reset to the first packet. */
  readonly refused: number
  readonly reset: number
  readonly timeout: number
  /** Ended in order without an answer. */
  readonly cut: number
  /** Every outcome that occurred, by its name. */
  readonly outcomes: Readonly<Record<string, number>>
  /** Of those that were served. */
  readonly longestMs: number
  readonly p99Ms: number
}

/** How to connect. */
export interface ConnectOptions {
  /** `IP:PORT` or `[IP6]:PORT`, taken in turn. Each must answer a line with one that holds it, as `echo` does. */
  readonly targets: readonly string[]
  /** New connections a second, whatever becomes of the earlier ones; 50 unless given. */
  readonly rate?: number
  /** Text that every connection carries; one of its own unless given. */
  readonly canary?: string
  /** A connection without an answer for this long is a timeout; 15 s unless given. */
  readonly patienceMs?: number
}

/** New connections at a steady rate, until the end of the scope. */
export interface SteadyConnections extends AsyncDisposable {
  /** Every connection carries it: what `watchForPlaintext` is told to look for. */
  readonly canary: string
  /** The connections that have ended so far, in the order of their ends. */
  calls(): readonly Call[]
  /** Waits until this many more have ended, however. */
  more(count: number): Promise<void>
  /** Opens no more, waits for those that are open, and sums up. */
  stop(): Promise<CallSummary>
}

/** Programs that dial for {@link keepConnecting}, and for machines of the fleet, where it must be put first. */
export const dialerPath: string = join(import.meta.dirname, 'services', 'dialer.py')

/** The argument that the dialer takes. */
export function dialerOptions(
  options: ConnectOptions & { readonly canary: string; readonly log?: string },
): string {
  const { targets, rate = 50, canary: text, patienceMs = 15_000, log } = options
  return JSON.stringify({ targets, rate, canary: text, patience: patient(patienceMs) / 1_000, log })
}

/** Starts to connect as a service, in its host. */
export async function keepConnecting(
  from: Pick<Service, 'spawn'>,
  options: ConnectOptions,
): Promise<SteadyConnections> {
  const text = options.canary ?? canary()
  const calls: Call[] = []
  let rest = ''
  // By its text: the service's user may not be able to read this checkout.
  const program = await readFile(dialerPath, 'utf8')
  const dialer = await from.spawn(
    ['/usr/bin/python3', '-c', program, dialerOptions({ ...options, canary: text })],
    {
      onOutput: (chunk) => {
        const lines = (rest + chunk.toString('utf8')).split('\n')
        rest = lines.pop() ?? ''
        calls.push(...parseCalls(lines))
      },
    },
  )
  const closed = new Promise<void>((resolve) => dialer.child.once('close', () => resolve()))
  const stop = async (): Promise<CallSummary> => {
    const { code } = await dialer.stop(patient(options.patienceMs ?? 15_000) + 10_000)
    await closed
    if (code !== 0) throw new Error(`The dialer ended with ${code}: ${dialer.output}`)
    return summarizeCalls(calls)
  }
  return {
    canary: text,
    calls: () => calls,
    async more(count) {
      const wanted = calls.length + count
      await eventually(
        () => {
          if (dialer.hasExited) return
          if (calls.length < wanted) throw new Error(`${calls.length} of ${wanted} connections`)
        },
        { withinMs: 60_000 },
      )
      if (dialer.hasExited) throw new Error(`The dialer has ended: ${dialer.output}`)
    },
    stop,
    async [Symbol.asyncDispose]() {
      if (!dialer.hasExited) await stop()
    },
  }
}

/** Reads what the dialer writes, a line a connection. */
export function parseCalls(lines: readonly string[]): readonly Call[] {
  return lines.filter((line) => line !== '').map((line) => JSON.parse(line) as Call)
}

/** Sums up connections. */
export function summarizeCalls(calls: readonly Call[]): CallSummary {
  const outcomes: Record<string, number> = {}
  for (const { outcome } of calls) outcomes[outcome] = (outcomes[outcome] ?? 0) + 1
  const waits = calls
    .filter(({ outcome }) => outcome === 'served')
    .map(({ waitedMs }) => waitedMs)
    .toSorted((a, b) => a - b)
  const of = (outcome: CallOutcome): number => outcomes[outcome] ?? 0
  return {
    calls: calls.length,
    served: of('served'),
    refused: of('refused'),
    reset: of('reset'),
    timeout: of('timeout'),
    cut: of('cut'),
    outcomes,
    longestMs: waits.at(-1) ?? 0,
    p99Ms: waits[Math.ceil(waits.length * 0.99) - 1] ?? 0,
  }
}
