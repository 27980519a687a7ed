/**
 * Starts the thread of the store and asks it. A thread that has died is started again; what it was asked meanwhile
 * fails, and whoever asked tries again.
 */
import { Worker } from 'node:worker_threads'
import { backoffMs } from '../lib/backoff.ts'
import { systemRandom } from '../lib/clock.ts'
import { describeError, isErrorCode, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import type { CellMeaning } from './store/cells.ts'
import type {
  Answers,
  Failure,
  FromThread,
  Meanings,
  Question,
  StoreSettings,
  ToThread,
} from './store/protocol.ts'

/** What the numbers in answers mean. The lists grow; after a reset they are others. */
export interface MeaningLists {
  readonly names: readonly string[]
  readonly cells: readonly CellMeaning[]
  readonly hosts: readonly string[]
}

interface Pending {
  readonly resolve: (answer: Answers[keyof Answers]) => void
  readonly reject: (error: MeshError) => void
}

/** What the thread allocates is garbage within a question, and mostly not in its heap. */
const YOUNG_GENERATION_MB = 16

const RESTART_BACKOFF = { minMs: 100, maxMs: 10_000 }

/** See the head of this file. */
export class StoreClient implements AsyncDisposable {
  readonly #settings: StoreSettings
  readonly #log: Log
  readonly #pending = new Map<number, Pending>()
  #thread: Worker | undefined
  #nextId = 0
  #failures = 0
  #isClosed = false
  #restart: NodeJS.Timeout | undefined
  #names: string[] = []
  #cells: CellMeaning[] = []
  #hosts: string[] = []

  constructor(settings: StoreSettings, log: Log) {
    this.#settings = settings
    this.#log = log
  }

  /** @throws MeshError HM_STORE_FAILED, HM_STORE_FOREIGN */
  async open(): Promise<Answers['open']> {
    this.#start()
    return await this.ask({ kind: 'open', settings: this.#settings })
  }

  /** Stores what has arrived and ends the thread. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#isClosed) return
    this.#isClosed = true
    clearTimeout(this.#restart)
    const thread = this.#thread
    if (thread === undefined) return
    await this.ask({ kind: 'close' }).catch((thrown: unknown) =>
      this.#log.error('Cannot close the store', { error: describeError(thrown) }),
    )
    await thread.terminate()
  }

  /** Ends the thread of a store that could not be opened. */
  async abandon(): Promise<void> {
    this.#isClosed = true
    clearTimeout(this.#restart)
    await this.#thread?.terminate()
  }

  get meanings(): MeaningLists {
    return { names: this.#names, cells: this.#cells, hosts: this.#hosts }
  }

  /** Questions without an answer. */
  get waiting(): number {
    return this.#pending.size
  }

  /** @throws MeshError of the thread, or HM_STORE_FAILED when it has died */
  ask<Kind extends Question['kind']>(
    question: Extract<Question, { readonly kind: Kind }>,
  ): Promise<Answers[Kind]> {
    return new Promise((resolve, reject) => {
      const thread = this.#thread
      if (thread === undefined) {
        reject(gone())
        return
      }
      const id = this.#nextId
      this.#nextId += 1
      this.#pending.set(id, {
        // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the thread answers a question with the answer of its kind
        resolve: (answer) => resolve(answer as Answers[Kind]),
        reject,
      })
      thread.postMessage({ id, question } satisfies ToThread)
    })
  }

  #start(): void {
    const thread = new Worker(threadFile(), {
      resourceLimits: { maxYoungGenerationSizeMb: YOUNG_GENERATION_MB },
    })
    this.#thread = thread
    thread.on('message', (message: FromThread) => this.#onMessage(message))
    thread.on('error', (error) =>
      this.#log.error('The thread of the store crashed', { error: describeError(error) }),
    )
    thread.on('exit', () => this.#onExit())
  }

  #onMessage(message: FromThread): void {
    switch (message.kind) {
      case 'meanings':
        this.#learn(message.meanings)
        return
      case 'log':
        this.#log[message.level](message.message, message.fields)
        return
      case 'answers':
        for (const outcome of message.answers) {
          const pending = this.#pending.get(outcome.id)
          this.#pending.delete(outcome.id)
          if ('failure' in outcome) pending?.reject(errorOf(outcome.failure))
          else pending?.resolve(outcome.answer)
        }
    }
  }

  #learn({ isReset, hosts, names, cells }: Meanings): void {
    if (isReset) {
      // Answers that are still read refer to the former lists.
      this.#names = []
      this.#cells = []
    }
    for (const [id, name] of hosts) this.#hosts[id] = name
    for (const [id, name] of names) this.#names[id] = name
    for (const [id, meaning] of cells) this.#cells[id] = meaning
  }

  #onExit(): void {
    this.#thread = undefined
    const pending = [...this.#pending.values()]
    this.#pending.clear()
    for (const { reject } of pending) reject(gone())
    if (this.#isClosed) return
    const waitMs = backoffMs(this.#failures, RESTART_BACKOFF, systemRandom)
    this.#failures += 1
    this.#log.error('The thread of the store is gone and will be replaced', {
      waitMs: Math.round(waitMs),
    })
    this.#restart = setTimeout(() => this.#startAgain(), waitMs)
  }

  #startAgain(): void {
    this.open()
      .then(() => (this.#failures = 0))
      .catch((thrown: unknown) => {
        this.#log.error('Cannot open the store again', { error: describeError(thrown) })
        void this.#thread?.terminate()
      })
  }
}

function errorOf({ code, message, hint }: Failure): MeshError {
  return new MeshError(isErrorCode(code) ? code : 'HM_STORE_FAILED', message, {
    ...(hint !== undefined && { hint }),
  })
}

function gone(): MeshError {
  return new MeshError('HM_STORE_FAILED', 'Cannot use the store: its thread is not running', {
    hint: 'It is started again by itself; the log says why it ended',
  })
}

/** The thread's program: TypeScript or JavaScript like this file. */
function threadFile(): URL {
  const extension = import.meta.url.endsWith('.ts') ? 'ts' : 'js'
  return new URL(`../aggregator/store-thread.${extension}`, import.meta.url)
}
