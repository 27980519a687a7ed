/**
 * The thread of the store: answers questions in order, and stores reports that arrive together in one transaction.
 */
import { parentPort } from 'node:worker_threads'
import { describeError, errorCode, MeshError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'
import { nameThread } from '../lib/thread-name.ts'
import type {
  Answers,
  Failure,
  FromThread,
  Question,
  StoredReport,
  ToThread,
} from './store/protocol.ts'
import { Store } from './store/store.ts'

/** How long a report waits for others, milliseconds. */
const GATHER_MS = 25

/** Reports and pairs of one transaction: some tens of milliseconds of work. */
const MAX_GATHERED = 256
const MAX_GATHERED_PAIRS = 20_000

type Outcome =
  | { readonly id: number; readonly answer: Answers[keyof Answers] }
  | { readonly id: number; readonly failure: Failure }

/** See the head of this file. */
class StoreThread {
  readonly #post: (message: FromThread) => void
  readonly #gathered: { readonly id: number; readonly report: StoredReport }[] = []
  #gatheredPairs = 0
  #timer: NodeJS.Timeout | undefined
  #store: Store | undefined

  constructor(post: (message: FromThread) => void) {
    this.#post = post
  }

  take({ id, question }: ToThread): void {
    if (question.kind === 'accept') {
      this.#gathered.push({ id, report: question.report })
      for (const { pairs } of question.report.records) this.#gatheredPairs += pairs.length
      const isEnough =
        this.#gathered.length >= MAX_GATHERED || this.#gatheredPairs >= MAX_GATHERED_PAIRS
      if (isEnough) this.#storeGathered()
      else this.#timer ??= setTimeout(() => this.#storeGathered(), GATHER_MS)
      return
    }
    if (question.kind === 'close') this.#storeGathered()
    let outcome: Outcome
    try {
      outcome = { id, answer: this.#answer(question) }
    } catch (thrown) {
      outcome = { id, failure: failureOf(thrown) }
    }
    this.#send([outcome])
  }

  #storeGathered(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#gatheredPairs = 0
    if (this.#gathered.length === 0) return
    const gathered = this.#gathered.splice(0)
    const results = this.#opened().accept(gathered.map(({ report }) => report))
    this.#send(
      gathered.map(({ id }, index): Outcome => {
        const result = results[index]
        return result === undefined || result instanceof MeshError
          ? { id, failure: failureOf(result) }
          : { id, answer: result }
      }),
    )
  }

  #answer(question: Exclude<Question, { readonly kind: 'accept' }>): Answers[keyof Answers] {
    if (question.kind === 'open') {
      this.#store = new Store(question.settings, this.#log())
      return this.#store.knownHosts()
    }
    const store = this.#opened()
    switch (question.kind) {
      case 'conflict':
        store.noteConflict(question.host, question.fromMs, question.toMs)
        return undefined
      case 'maintain': {
        const untilMs = performance.now() + question.budgetMs
        return store.maintain(question.nowMs, () => performance.now() < untilMs)
      }
      case 'pairs':
        return store.attempt(0, () => store.reader.pairs(question.span, question.filter))
      case 'history':
        return store.attempt(0, () =>
          store.reader.history(question.span, question.tier, question.filter),
        )
      case 'hosts':
        return store.attempt(0, () => store.reader.hosts(question.atMs))
      case 'hostFigures':
        return store.attempt(0, () => store.reader.hostFigures(question.span, question.host))
      case 'workloads':
        return store.attempt(0, () => store.reader.workloads(question.span, question.host))
      case 'status':
        return store.attempt(0, () => store.status())
      case 'close':
        store[Symbol.dispose]()
        return undefined
    }
  }

  #send(answers: readonly Outcome[]): void {
    const meanings = this.#store?.takeMeanings()
    if (meanings !== undefined) this.#post({ kind: 'meanings', meanings })
    this.#post({ kind: 'answers', answers })
  }

  #opened(): Store {
    if (this.#store === undefined)
      throw new MeshError('HM_STORE_FAILED', 'Cannot use the store: it is not open')
    return this.#store
  }

  #log(): Log {
    const write =
      (level: 'info' | 'warn' | 'error') =>
      (message: string, fields: Record<string, unknown> = {}): void =>
        this.#post({ kind: 'log', level, message, fields })
    const log: Log = {
      debug: () => undefined,
      info: write('info'),
      warn: write('warn'),
      error: write('error'),
      child: () => log,
    }
    return log
  }
}

function failureOf(thrown: unknown): Failure {
  if (thrown instanceof MeshError)
    return { code: thrown.code, message: describeError(thrown), hint: thrown.hint }
  return {
    code: 'HM_STORE_FAILED',
    message: `Cannot use the store: ${describeError(thrown)} (${errorCode(thrown)})`,
    hint: undefined,
  }
}

const port = parentPort
if (port !== null) {
  nameThread('hostmesh-store')
  const thread = new StoreThread((message) => {
    // Bytes are moved, not copied.
    const moved =
      message.kind === 'answers'
        ? message.answers.flatMap((outcome) =>
            'answer' in outcome && outcome.answer instanceof Uint8Array
              ? [outcome.answer.buffer]
              : [],
          )
        : []
    port.postMessage(message, moved)
  })
  port.on('message', (message: ToThread) => thread.take(message))
}
