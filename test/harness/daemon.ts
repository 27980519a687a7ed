/**
 * The daemon under test: the real `hostmesh run` in a host's namespace, asked over its own admin socket.
 */
import { readFileSync } from 'node:fs'
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { request } from 'node:http'
import { join } from 'node:path'
import { stringify } from 'yaml'

import type { ConfigInput } from '../../src/config/schema.ts'
import type {
  CertsDocument,
  ConnectionsDocument,
  PeersDocument,
  ServicesDocument,
  StatusDocument,
} from '../../src/model/admin.ts'
import { eventually, patient } from './eventually.ts'
import type { Namespace } from './network.ts'
import { type CommandResult, type Exit, OwnedProcess, runCommand } from './owned-process.ts'

/** The executable, as a user of the checkout runs it. */
export const hostmesh: string = join(import.meta.dirname, '../../scripts/hostmesh')

/** A host that is not ready by then has a defect. Milliseconds, before patience. */
const READY_LIMIT_MS = 20_000

/** Node's and our own words for failures that nobody handled; none may appear in a log. */
const UNHANDLED = /unhandled|uncaught|worker crashed|worker is stuck|MaxListenersExceeded/i

/** What a worker says that was made to crash (services/crash-worker.ts). */
const ASKED_FOR = /a crash that a test asked for/

/** One line of `/metrics`. */
export interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

/** One host's daemon. It can be started again after it ended. */
export class Daemon implements AsyncDisposable {
  readonly folder: string
  readonly configPath: string
  readonly socketPath: string
  readonly stateFolder: string
  private readonly namespace: Namespace
  private readonly name: string
  private process: OwnedProcess | undefined
  private earlierLogs = ''

  constructor(name: string, namespace: Namespace, folder: string) {
    this.name = name
    this.namespace = namespace
    this.folder = folder
    this.configPath = join(folder, 'hostmesh.yaml')
    this.socketPath = join(folder, 'admin.sock')
    this.stateFolder = join(folder, 'state')
  }

  get isRunning(): boolean {
    return this.process !== undefined && !this.process.hasExited
  }

  /** @throws when it was never started. */
  get pid(): number {
    return this.started().pid
  }

  /** Its memory that is resident now. */
  get residentMiB(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, 'utf8')
    const [, kib] = /VmRSS:\s+(\d+) kB/.exec(status) ?? []
    if (kib === undefined) throw new Error(`The daemon of ${this.name} has ended`)
    return Number(kib) / 1_024
  }

  /** What it logged, over all its lives. */
  get log(): string {
    return this.earlierLogs + (this.process?.output ?? '')
  }

  async writeConfig(config: ConfigInput): Promise<void> {
    await mkdir(this.folder, { recursive: true })
    await writeFile(this.configPath, stringify(config), { mode: 0o600 })
  }

  /** Starts it with the configuration written before; returns without waiting for it to be ready. */
  async launch(prefix: readonly string[] = []): Promise<void> {
    if (this.isRunning) throw new Error(`The daemon of ${this.name} runs already`)
    this.earlierLogs = this.log
    this.process = await OwnedProcess.start(
      this.namespace.inside([...prefix, hostmesh, 'run', '--config', this.configPath]),
      { name: `hostmesh on ${this.name}` },
    )
  }

  /**
   * Starts it and waits until it says it is ready.
   * @param prefix a command that the daemon is started by, such as setpriv with its options
   */
  async start(prefix: readonly string[] = []): Promise<void> {
    await this.launch(prefix)
    await this.ready()
  }

  /** Waits until it is ready. @throws at once, with its log, when it has ended instead. */
  async ready(): Promise<void> {
    const daemon = this.started()
    const status = eventually(
      async () => {
        if (daemon.hasExited) return undefined
        const current = await this.status()
        if (!current.ready) throw new Error(`it waits for ${current.awaited.join(', ')}`)
        return current
      },
      { withinMs: READY_LIMIT_MS, everyMs: 50 },
    )
    const reached = await status.catch((cause: unknown) => {
      throw new Error(`hostmesh on ${this.name} does not get ready; its log:\n${this.log}`, {
        cause,
      })
    })
    if (reached === undefined)
      throw new Error(`hostmesh on ${this.name} ended at its start; its log:\n${this.log}`)
  }

  /** Stops it as systemd would, and waits for its end. @throws when it does not end with code 0. */
  async stop(graceMs?: number): Promise<void> {
    const exit = await this.started().stop(graceMs)
    if (exit.code !== 0)
      throw new Error(
        `hostmesh on ${this.name} ended with ${exit.code ?? exit.signal} after SIGTERM; its log:\n${this.log}`,
      )
  }

  /** Ends it with SIGKILL. */
  async kill(): Promise<Exit> {
    return this.started().kill()
  }

  /** Removes what it wrote down for its next start. */
  async forget(): Promise<void> {
    await rm(this.stateFolder, { recursive: true, force: true })
  }

  /** A file that it wrote down for its next start: `catalog`, `certificates`, `virtual-addresses`. */
  async kept(name: string): Promise<string> {
    return readFile(join(this.stateFolder, `${name}.json`), 'utf8')
  }

  signal(signal: NodeJS.Signals): void {
    this.started().signal(signal)
  }

  /** Resolves when it has ended, however. */
  get exited(): Promise<Exit> {
    return this.started().exited
  }

  async status(): Promise<StatusDocument> {
    return (await this.get('/v1/status')) as StatusDocument
  }

  async services(): Promise<ServicesDocument> {
    return (await this.get('/v1/services')) as ServicesDocument
  }

  async peers(): Promise<PeersDocument> {
    return (await this.get('/v1/peers')) as PeersDocument
  }

  async connections(): Promise<ConnectionsDocument> {
    return (await this.get('/v1/connections')) as ConnectionsDocument
  }

  async certs(): Promise<CertsDocument> {
    return (await this.get('/v1/certs')) as CertsDocument
  }

  async metrics(): Promise<readonly Sample[]> {
    return parseExposition(await this.getText('/metrics'))
  }

  /** The sum of a metric over all samples that have these labels. */
  async metric(name: string, labels: Readonly<Record<string, string>> = {}): Promise<number> {
    const samples = await this.metrics()
    return samples
      .filter(
        (sample) =>
          sample.name === name &&
          Object.entries(labels).every(([key, value]) => sample.labels[key] === value),
      )
      .reduce((sum, { value }) => sum + value, 0)
  }

  /** Runs a subcommand against this host's socket: `cli('status', '-o', 'json')`. */
  async cli(...args: string[]): Promise<CommandResult> {
    return runCommand(
      this.namespace.inside([hostmesh, ...args, '--addr', `unix://${this.socketPath}`]),
    )
  }

  /** Runs a subcommand in this host's namespace as it is written. */
  async command(...args: string[]): Promise<CommandResult> {
    return runCommand(this.namespace.inside([hostmesh, ...args]))
  }

  /** Waits until no connection is open here. @throws with the open ones when some stay. */
  async hasNoConnections(): Promise<void> {
    await eventually(async () => {
      const { connections, omitted } = await this.connections()
      const active = await this.metric('hostmesh_tcp_connections_active')
      if (connections.length + omitted + active > 0)
        throw new Error(
          `${this.name}: gauge ${active}, open connections ${JSON.stringify(connections, null, 1)}`,
        )
    })
  }

  /** @throws when the log holds a failure that nobody handled. */
  assertCleanLog(): void {
    const bad = this.log.split('\n').filter((line) => UNHANDLED.test(line) && !ASKED_FOR.test(line))
    if (bad.length > 0)
      throw new Error(`hostmesh on ${this.name} logged unhandled failures:\n${bad.join('\n')}`)
  }

  /** Ends it in order, after its gauges are back at zero. One that a test killed is left as it is. */
  async [Symbol.asyncDispose](): Promise<void> {
    try {
      if (this.isRunning) {
        try {
          await this.hasNoConnections()
        } finally {
          await this.stop()
        }
      }
    } finally {
      this.assertCleanLog()
    }
  }

  private started(): OwnedProcess {
    if (this.process === undefined) throw new Error(`The daemon of ${this.name} was never started`)
    return this.process
  }

  private async get(path: string): Promise<unknown> {
    return JSON.parse(await this.getText(path))
  }

  private async getText(path: string): Promise<string> {
    return httpOverSocket(this.socketPath, { path })
  }
}

/** What to ask over a unix socket. */
export interface SocketRequest {
  readonly path: string
  readonly method?: string
  readonly body?: unknown
  /** An ACL token of Consul. */
  readonly token?: string | undefined
}

/** The body of a 200 answer of an HTTP server on a unix socket. @throws for any other status. */
export function httpOverSocket(socketPath: string, asked: SocketRequest): Promise<string> {
  return new Promise((resolve, reject) => {
    const { path, method = 'GET', body, token } = asked
    const headers = token === undefined ? {} : { 'x-consul-token': token }
    const call = request(
      { socketPath, path, method, headers, agent: false, timeout: patient(10_000) },
      (response) => {
        const chunks: Buffer[] = []
        response.on('data', (chunk: Buffer) => chunks.push(chunk))
        response.on('error', reject)
        response.on('end', () => {
          const text = Buffer.concat(chunks).toString('utf8')
          if (response.statusCode === 200) resolve(text)
          else reject(new Error(`${method} ${path}: ${response.statusCode}: ${text.slice(0, 500)}`))
        })
      },
    )
    call.on('timeout', () => call.destroy(new Error(`${method} ${path}: no answer`)))
    call.on('error', reject)
    call.end(body === undefined ? undefined : JSON.stringify(body))
  })
}

function parseExposition(text: string): readonly Sample[] {
  const samples: Sample[] = []
  for (const line of text.split('\n')) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line)
    if (match === null) continue
    const labels: Record<string, string> = {}
    for (const [, key = '', value = ''] of (match[2] ?? '').matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g))
      labels[key] = value
    samples.push({ name: match[1] ?? '', labels, value: Number(match[3]) })
  }
  return samples
}
