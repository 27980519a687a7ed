/**
 * An aggregator as a process: the compiled program, with a database of its own.
 */
import { mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { callHttp, portOf } from '../../src/lib/json-http.ts'
import { RunningProcess, waitFor } from '../site/process.ts'

const MAIN = resolve(import.meta.dirname, '../../dist/program/main.js')

const START_DEADLINE_MS = 15_000

/** Beyond any document. */
const MAX_ANSWER_BYTES = 64 * 1_024 * 1_024

/** An aggregator that can be killed and started again on its database. */
export class AggregatorProcess implements AsyncDisposable {
  readonly reportPort: number
  readonly #apiPort: number
  readonly #directory: string
  readonly #profiles: string | undefined
  #process: RunningProcess

  /** Starts one, and waits until it answers. `profiles`: where CPU profiles are written. */
  static async start(directory: string, profiles?: string): Promise<AggregatorProcess> {
    mkdirSync(directory, { recursive: true })
    const started = new AggregatorProcess(directory, profiles, await freePorts())
    await started.#ready()
    return started
  }

  private constructor(
    directory: string,
    profiles: string | undefined,
    { api, reports }: { readonly api: number; readonly reports: number },
  ) {
    this.#directory = directory
    this.#profiles = profiles
    this.#apiPort = api
    this.reportPort = reports
    writeFileSync(
      this.#configFile,
      `listen: {socket: ${join(directory, 'api.sock')}, port: ${api}}\nreports: {port: ${reports}}\nstore: {directory: ${directory}}\n`,
    )
    this.#process = this.#spawn()
  }

  get pid(): number {
    return this.#process.pid
  }

  /** As a crash or the kernel ends it. */
  async kill(): Promise<void> {
    await this.#process.stop('SIGKILL')
  }

  /** Starts it again on its database. */
  async restart(): Promise<void> {
    this.#process = this.#spawn()
    await this.#ready()
  }

  /** Ends it in order, which empties the log of the database into its file. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.stop()
  }

  /** A document as a browser asks for it; the bytes are not unpacked unless `plain`. */
  async ask(path: string, { plain = false } = {}): Promise<{ status: number; bytes: Buffer }> {
    return await callHttp(
      (options) => request(options),
      { host: '127.0.0.1', port: this.#apiPort, path, timeout: 20_000 },
      {
        maxBytes: MAX_ANSWER_BYTES,
        headers: plain ? {} : { 'accept-encoding': 'gzip' },
      },
    )
  }

  /** Most memory that was resident, bytes. */
  peakBytes(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8')
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? Number.NaN) * 1_024
  }

  /** Size of the database and its log. */
  databaseBytes(): number {
    return ['fleet.db', 'fleet.db-wal'].reduce(
      (sum, file) =>
        sum + (statSync(join(this.#directory, file), { throwIfNoEntry: false })?.size ?? 0),
      0,
    )
  }

  #spawn(): RunningProcess {
    return new RunningProcess({
      name: 'aggregator',
      // As scripts/hostmesh starts it.
      argv: [
        process.execPath,
        '--disable-warning=ExperimentalWarning',
        '--no-allocation-site-pretenuring',
        '--expose-gc',
        ...(this.#profiles === undefined ? [] : ['--cpu-prof', `--cpu-prof-dir=${this.#profiles}`]),
        MAIN,
        'aggregator',
        '--config',
        this.#configFile,
      ],
      logFile: join(this.#directory, 'log'),
    })
  }

  get #configFile(): string {
    return join(this.#directory, 'aggregator.yaml')
  }

  async #ready(): Promise<void> {
    const patience = { deadlineMs: START_DEADLINE_MS, signal: new AbortController().signal }
    await waitFor('the aggregator answers', patience, async () => {
      if (this.#process.end !== undefined)
        throw new Error(`The aggregator has ended: ${this.#process.outputTail()}`)
      const answer = await this.ask('/healthz').catch(() => undefined)
      return answer?.status === 200 ? true : undefined
    })
  }
}

async function freePorts(): Promise<{ readonly api: number; readonly reports: number }> {
  const servers = [createServer(), createServer()]
  const ports: number[] = []
  for (const server of servers) {
    await new Promise<void>((listening) => server.listen(0, '127.0.0.1', listening))
    ports.push(portOf(server))
  }
  for (const server of servers) server.close()
  return { api: ports[0] ?? 0, reports: ports[1] ?? 0 }
}
