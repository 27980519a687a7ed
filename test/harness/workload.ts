/**
 * A service process as its test holds it: asks go out over the channel, answers come back.
 */
import { join } from 'node:path'

import { patient, within } from './eventually.ts'
import type { Namespace } from './network.ts'
import { type Exit, OwnedProcess } from './owned-process.ts'
import type { Ask, Behavior, Reply, Rest, Sent, WorkloadEvent } from './workload-protocol.ts'

const script = join(import.meta.dirname, 'services', 'workload.ts')

/** Longest wait for one answer of a service process, before patience. */
const ANSWER_LIMIT_MS = 20_000

/** An error that happened in the service process; `code` is the system's, such as ECONNRESET. */
export class WorkloadError extends Error {
  override readonly name = 'WorkloadError'
  readonly code: string

  constructor(code: string, message: string) {
    super(message)
    this.code = code
  }
}

/** One connection of a service process. Bytes are read only when asked for. */
export class RemoteSocket {
  private readonly workload: Workload
  private readonly connection: number

  constructor(workload: Workload, connection: number) {
    this.workload = workload
    this.connection = connection
  }

  /** Sends; resolves when the kernel has taken all of it. */
  async write(bytes: string | Uint8Array): Promise<void> {
    const { connection } = this
    await this.workload.ask({ op: 'write', connection, bytes: Buffer.from(bytes) })
  }

  /** Sends `total` recognizable bytes in chunks. Gives up when nothing was taken for `stallMs`. */
  async writePattern(
    total: number,
    options: { readonly chunkBytes?: number; readonly stallMs?: number } = {},
  ): Promise<Sent> {
    const { connection } = this
    const { chunkBytes = 64 * 1024, stallMs = patient(10_000) } = options
    return (await this.workload.ask({
      op: 'writePattern',
      connection,
      total,
      chunkBytes,
      stallMs,
    })) as Sent
  }

  /** Exactly `count` bytes, or fewer when the other side ended before. */
  async readBytes(count: number): Promise<Uint8Array> {
    const { connection } = this
    return (await this.workload.ask({ op: 'read', connection, count })) as Uint8Array
  }

  /** Exactly `count` bytes as text, or fewer when the other side ended before. */
  async read(count: number): Promise<string> {
    return Buffer.from(await this.readBytes(count)).toString('utf8')
  }

  async readLine(): Promise<string> {
    return (await this.workload.ask({
      op: 'readLine',
      connection: this.connection,
    })) as string
  }

  /** Reads until the connection ends, and says how it ended. Never rejects for a reset. */
  async readRest(): Promise<Rest> {
    return (await this.workload.ask({ op: 'readRest', connection: this.connection })) as Rest
  }

  /** Finishes sending; receiving goes on. */
  async end(): Promise<void> {
    await this.workload.ask({ op: 'end', connection: this.connection })
  }

  /** Aborts both directions with an RST. */
  async reset(): Promise<void> {
    await this.workload.ask({ op: 'reset', connection: this.connection })
  }
}

/** What a command line begins with so that it runs in a cgroup, given its folder. */
export function enterCgroup(folder: string): readonly string[] {
  return ['sh', '-c', `echo $$ >${folder}/cgroup.procs && exec "$@"`, 'sh']
}

/** How a service process is started. */
export interface WorkloadOptions {
  readonly namespace: Namespace
  readonly uid: number
  readonly service: string
  readonly instance: string
  /** Started inside this cgroup v2 directory. */
  readonly cgroup?: string | undefined
}

/** A running service process. */
export class Workload implements AsyncDisposable {
  private readonly process: OwnedProcess
  private readonly waiting = new Map<number, (reply: Reply) => void>()
  private readonly accepted: RemoteSocket[] = []
  private readonly acceptWaiters: ((socket: RemoteSocket) => void)[] = []
  private lastId = 0

  private constructor(process: OwnedProcess) {
    this.process = process
    process.child.on('message', (message: Reply | WorkloadEvent) => this.take(message))
  }

  static async start(options: WorkloadOptions): Promise<Workload> {
    const { namespace, uid, service, instance, cgroup } = options
    const argv = [process.execPath, script, String(uid), service, instance]
    const enter = cgroup === undefined ? [] : enterCgroup(cgroup)
    const owned = await OwnedProcess.start(namespace.inside([...enter, ...argv]), {
      name: `service ${instance}`,
      ipc: true,
    })
    const workload = new Workload(owned)
    const ready = new Promise<void>((resolve, reject) => {
      owned.child.once('message', () => resolve())
      void owned.exited.then(() =>
        reject(new Error(`Service ${instance} ended at its start: ${owned.output}`)),
      )
    })
    await within(15_000, `The start of service ${instance}`, ready)
    return workload
  }

  get pid(): number {
    return this.process.pid
  }

  async listen(address: string, port: number, behavior: Behavior): Promise<void> {
    await this.ask({ op: 'listen', address, port, behavior })
  }

  async dial(ip: string, port: number): Promise<RemoteSocket> {
    return new RemoteSocket(this, (await this.ask({ op: 'dial', ip, port })) as number)
  }

  /** The next connection that a `manual` listener accepted. */
  async accept(): Promise<RemoteSocket> {
    const ready = this.accepted.shift()
    if (ready !== undefined) return ready
    const next = new Promise<RemoteSocket>((resolve) => {
      this.acceptWaiters.push(resolve)
    })
    return within(10_000, `A connection to ${this.process.name}`, next)
  }

  /** How many connections wait for {@link Workload.accept}: what reached this service unexpectedly. */
  get unclaimed(): number {
    return this.accepted.length
  }

  /**
   * Has the process do one thing.
   * @throws WorkloadError with the system's error code when it failed there.
   */
  async ask(ask: Ask): Promise<unknown> {
    this.lastId += 1
    const id = this.lastId
    const reply = new Promise<Reply>((resolve) => {
      this.waiting.set(id, resolve)
    })
    this.process.child.send({ ...ask, id })
    try {
      const answer = await within(ANSWER_LIMIT_MS, `${this.process.name}: ${ask.op}`, reply)
      if ('error' in answer)
        throw new WorkloadError(answer.error.code, `${ask.op}: ${answer.error.message}`)
      return answer.value
    } finally {
      this.waiting.delete(id)
    }
  }

  async kill(): Promise<Exit> {
    return this.process.kill()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.process.hasExited) return
    if (this.process.child.connected) this.process.child.disconnect()
    await within(5_000, `The end of ${this.process.name}`, this.process.exited).catch(() =>
      this.process.kill(),
    )
  }

  private take(message: Reply | WorkloadEvent): void {
    if ('id' in message) {
      this.waiting.get(message.id)?.(message)
    } else if (message.event === 'accepted') {
      const socket = new RemoteSocket(this, message.connection)
      const waiter = this.acceptWaiters.shift()
      if (waiter === undefined) this.accepted.push(socket)
      else waiter(socket)
    }
  }
}
