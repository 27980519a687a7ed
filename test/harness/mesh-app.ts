/**
 * An application for tests that speak HTTP/1, HTTP/2, gRPC or bare TCP: serves, calls, and keeps a constant
 * load going of which not one request may fail.
 *
 * ```ts
 * const db = await MeshApp.start(mesh, mesh.host('b').service('db', { listens: 5432 }))
 * await db.serve('http')
 * const web = await MeshApp.start(mesh, mesh.host('a').service('web'))
 * await web.call({ protocol: 'http', ip: '127.0.0.1', port: 9191 }) // 'db'
 * ```
 */
import { join } from 'node:path'
import { within } from './eventually.ts'
import type { Mesh } from './mesh.ts'
import type { AppAsk, AppReply, LoadReport, Target } from './mesh-app-protocol.ts'
import { OwnedProcess } from './owned-process.ts'
import type { Service } from './service.ts'

const script = join(import.meta.dirname, 'services', 'mesh-app.ts')

/** Longest wait for one answer of an application process, before patience. */
const ANSWER_LIMIT_MS = 30_000

/** A running application; it belongs to the mesh it was started for. */
export class MeshApp implements AsyncDisposable {
  readonly service: Service
  private readonly process: OwnedProcess
  private readonly waiting = new Map<number, (reply: AppReply) => void>()
  private lastId = 0

  private constructor(service: Service, process: OwnedProcess) {
    this.service = service
    this.process = process
    process.child.on('message', (reply: AppReply) => this.waiting.get(reply.id)?.(reply))
  }

  /** Starts the service's process as its user. It is in no catalog yet: see {@link MeshApp.serve}. */
  static async start(mesh: Mesh, service: Service): Promise<MeshApp> {
    const argv = [process.execPath, script, String(service.uid), service.name]
    const owned = await OwnedProcess.start(service.host.namespace.inside(argv), {
      name: `application ${service.id}`,
      ipc: true,
    })
    const app = new MeshApp(service, owned)
    mesh.own(app)
    const ready = new Promise<void>((resolve, reject) => {
      owned.child.once('message', () => resolve())
      void owned.exited.then(() => reject(new Error(`${owned.name} ended: ${owned.output}`)))
    })
    await within(15_000, `The start of ${owned.name}`, ready)
    return app
  }

  /** Listens on the service's port. */
  async serve(protocol: Target['protocol']): Promise<void> {
    await this.ask({ op: 'serve', protocol, port: this.service.options.listens ?? 0 })
  }

  /** From now on it asks `target` before it answers. */
  async relayTo(target: Target): Promise<void> {
    await this.ask({ op: 'relay', target })
  }

  /** Calls once, on a connection of its own, and returns the name of who answered. */
  async call(target: Target): Promise<string> {
    return (await this.ask({ op: 'call', target })) as string
  }

  /** Begins a load that goes on until it is stopped, on kept connections where the protocol has them. */
  async startLoad(load: string, target: Target, concurrency = 2): Promise<void> {
    await this.ask({ op: 'load', load, target, concurrency })
  }

  /** Tells it another port, as a reload of an application's configuration does. */
  async moveLoad(load: string, port: number): Promise<void> {
    await this.ask({ op: 'move', load, port })
  }

  async loadSoFar(load: string): Promise<LoadReport> {
    return (await this.ask({ op: 'stats', load })) as LoadReport
  }

  /** Lets the calls under way finish, and says what came of all. */
  async stopLoad(load: string): Promise<LoadReport> {
    return (await this.ask({ op: 'stop', load })) as LoadReport
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.process.hasExited) return
    if (this.process.child.connected) this.process.child.disconnect()
    await within(5_000, `The end of ${this.process.name}`, this.process.exited).catch(() =>
      this.process.kill(),
    )
  }

  private async ask(ask: AppAsk): Promise<unknown> {
    this.lastId += 1
    const id = this.lastId
    const reply = new Promise<AppReply>((resolve) => {
      this.waiting.set(id, resolve)
    })
    this.process.child.send({ ...ask, id })
    try {
      const answer = await within(ANSWER_LIMIT_MS, `${this.process.name}: ${ask.op}`, reply)
      if ('error' in answer) throw new Error(`${ask.op}: ${answer.error}`)
      return answer.value
    } finally {
      this.waiting.delete(id)
    }
  }
}
