/**
 * One subject ready to be measured: its two hosts, the backend, its running hops, and the load that is put
 * on them. A stage owns all processes and namespaces it made and ends them when it is disposed.
 */
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { MeshError } from '../../src/lib/errors.ts'
import type { Entry, Site, Subject } from '../subjects/subject.ts'
import { type Backend, startBackend } from './backend.ts'
import type { PeerCertificates } from './certificates.ts'
import { createNamespacePair } from './namespaces.ts'
import { RunningProcess, run, waitFor } from './process.ts'
import { requireTool } from './tools.ts'

/** What all stages of a run share. */
export interface RunFiles {
  /** Readable by everybody: holds wrk's scripts, and a directory for each stage. */
  readonly directory: string
  readonly bulkFile: string
  readonly certificates: PeerCertificates
  readonly profileDirectory: string | undefined
}

/** How long a subject may take from its start to the first answer through it. */
const READY_DEADLINE_MS = 20_000

interface StageParts {
  readonly site: Site
  readonly backend: Backend
  readonly signal: AbortSignal
  readonly owned: AsyncDisposableStack
}

/** A subject between load and backend. */
export class Stage implements AsyncDisposable {
  readonly subject: Subject
  readonly files: RunFiles
  readonly backend: Backend
  /** Aborted when the run is called off; everything that waits here ends with its reason. */
  readonly signal: AbortSignal
  readonly #site: Site
  readonly #owned: AsyncDisposableStack
  readonly #loads = new Set<RunningProcess>()
  #hops: RunningProcess[] = []
  #loadCount = 0

  private constructor(subject: Subject, files: RunFiles, parts: StageParts) {
    this.subject = subject
    this.files = files
    this.backend = parts.backend
    this.signal = parts.signal
    this.#site = parts.site
    this.#owned = parts.owned
  }

  /** Builds the hosts, starts backend and hops, and waits until a request gets through. */
  static async build(
    subject: Subject,
    index: number,
    files: RunFiles,
    signal: AbortSignal,
  ): Promise<Stage> {
    await using undo = new AsyncDisposableStack()
    const directory = join(files.directory, subject.name)
    await mkdir(directory)
    const { a, b } = undo.use(await createNamespacePair(index))
    const backend = await startBackend(
      { namespace: b, address: subject.backendAddress, directory, bulkFile: files.bulkFile },
      signal,
    )
    undo.defer(() => backend.process.stop())
    const { certificates, profileDirectory } = files
    const runDirectory = files.directory
    const site: Site = { a, b, directory, runDirectory, certificates, profileDirectory }
    const stage = new Stage(subject, files, { backend, signal, site, owned: undo.move() })
    try {
      await stage.#startHops()
    } catch (error) {
      await stage[Symbol.asyncDispose]()
      throw error
    }
    return stage
  }

  /** Where the load connects. */
  get entry(): Entry {
    return this.subject.entry
  }

  /** Pids of the processes between load and backend: A, then B; none for no proxy. */
  get hopPids(): readonly number[] {
    return this.#hops.map((hop) => hop.pid)
  }

  /** Whether hops and backend all run. */
  get isAlive(): boolean {
    return [...this.#hops, this.backend.process].every((each) => each.end === undefined)
  }

  /** The address of `path` as the load asks for it. */
  url(path: string): string {
    return `http://${this.entry.host}:${this.entry.port}${path}`
  }

  /** Throws HM_BENCH_SUBJECT when a hop or the backend has ended. */
  check(): void {
    for (const each of [...this.#hops, this.backend.process])
      if (each.end !== undefined)
        throw new MeshError('HM_BENCH_SUBJECT', `${each.name} ended: ${each.end}`)
  }

  /** The ends of the hops' logs, to be shown with a failure. */
  logTails(): string {
    return this.#hops
      .map((hop) => {
        const state = hop.end === undefined ? 'running' : `ended: ${hop.end}`
        return `--- ${hop.name}, ${state}; the end of its log:\n${hop.outputTail()}`
      })
      .join('\n')
  }

  /** Starts a load on host A, by default as the user whose connections the subject takes. */
  startLoad(
    name: string,
    argv: readonly string[],
    uid: number | undefined = this.entry.uid,
  ): RunningProcess {
    this.#loadCount += 1
    const load = new RunningProcess({
      name,
      argv: this.#site.a.command(argv, uid),
      logFile: join(this.#site.directory, `load-${this.#loadCount}.log`),
    })
    this.#loads.add(load)
    void load.ended.then(() => this.#loads.delete(load))
    return load
  }

  /** Lets the load run for `seconds`. */
  async pause(seconds: number): Promise<void> {
    await delay(seconds * 1000, undefined, { signal: this.signal })
  }

  /** Ends the hops and starts them anew, so that their memory is that of a fresh daemon. */
  async restartHops(): Promise<void> {
    await this.#stopHops()
    await this.#startHops()
  }

  /** Ends everything that runs here, and removes the hosts. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([...this.#loads].map((load) => load.stop()))
    await this.#stopHops()
    await this.#owned.disposeAsync()
  }

  async #startHops(): Promise<void> {
    await this.subject.start(this.#site, this.#hops)
    const ask = this.#site.a.command(
      [requireTool('curl'), '--silent', '--fail', '--max-time', '2', this.url('/')],
      this.entry.uid,
    )
    let complaint = ''
    try {
      await waitFor(
        'a request gets through',
        { deadlineMs: READY_DEADLINE_MS, signal: this.signal },
        async () => {
          this.check()
          try {
            return await run(ask)
          } catch (error) {
            complaint = String(error)
            return undefined
          }
        },
      )
    } catch (error) {
      const { name, startHint } = this.subject
      const hint = startHint === undefined ? '' : ` (${startHint})`
      throw new MeshError('HM_BENCH_SUBJECT', `Cannot start ${name}${hint}`, {
        cause: new Error(`${String(error)}\n${complaint}\n${this.logTails()}`),
      })
    }
  }

  async #stopHops(): Promise<void> {
    const hops = this.#hops
    this.#hops = []
    await Promise.all(hops.map((hop) => hop.stop()))
  }
}
