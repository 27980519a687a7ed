/**
 * A document for a component: asked for again while it is shown, kept while the next one is under way.
 */
import { useEffect, useRef, useState } from 'preact/hooks'

import type { FleetDocuments } from '../model/fleet.ts'
import { ApiError, getDocument, type Query, token } from './api.ts'
import { liveEvent } from './live.ts'
import { view } from './location.ts'

/** What a component has of its document. */
export interface Loaded<Document> {
  /** The last one that came; null before the first. */
  readonly document: Document | null
  /** Why the last question had no answer; null when it had one. */
  readonly error: ApiError | null
  /** When the document came. */
  readonly atMs: number
  /** Whether the document answers an earlier question (another time, another window). */
  readonly isOld: boolean
  readonly retry: () => void
}

/** Milliseconds between an answer and the next question, at least: for what follows the live events. */
export const WITH_EVENTS_MS = 2_000
/** For what changes slowly or costs much. */
export const HALF_MINUTE_MS = 30_000

const RETRY_MS = [1_000, 2_000, 4_000, 8_000, 15_000]
/** Without live events a document is asked for this often. */
const WITHOUT_EVENTS_MS = 5_000
/** A document that takes long is asked for less often: at most a fifth of the time. */
const COST_FACTOR = 5

/** The document `name`; pass a query of the same content to keep it. */
export function useDocument<Name extends keyof FleetDocuments>(
  name: Name,
  query: Query,
  everyMs: number = WITH_EVENTS_MS,
): Loaded<FleetDocuments[Name]> {
  const [state, setState] = useState<{
    readonly document: FleetDocuments[Name] | null
    readonly error: ApiError | null
    readonly atMs: number
    readonly key: string
  }>({ document: null, error: null, atMs: 0, key: '' })
  const loop = useRef<Loop<FleetDocuments[Name]> | null>(null)
  const key = JSON.stringify([name, query, token.value])
  const isLive = view.value.params['at'] === undefined

  useEffect(() => {
    const own = new Loop<FleetDocuments[Name]>(
      (signal) => getDocument(name, query, signal),
      isLive ? everyMs : null,
      (outcome) =>
        setState((before) => ({
          document: outcome instanceof ApiError ? before.document : outcome,
          error: outcome instanceof ApiError ? outcome : null,
          atMs: outcome instanceof ApiError ? before.atMs : Date.now(),
          key: outcome instanceof ApiError ? before.key : key,
        })),
    )
    loop.current = own
    own.askNow()
    return () => own.end()
  }, [key, isLive])
  useEffect(() => loop.current?.askEvery(isLive ? everyMs : null), [everyMs, isLive])

  return { ...state, isOld: state.key !== key, retry: () => loop.current?.askNow() }
}

/** Asks, waits, asks again. */
class Loop<Document> {
  readonly #ask: (signal: AbortSignal) => Promise<Document>
  #everyMs: number | null
  readonly #tell: (outcome: Document | ApiError) => void
  readonly #stopListening: () => void
  #abort = new AbortController()
  #timer: ReturnType<typeof setTimeout> | undefined
  #failures = 0
  /** When the next question may be asked; null while one is under way. */
  #dueAtMs: number | null = 0
  #isEnded = false

  constructor(
    ask: (signal: AbortSignal) => Promise<Document>,
    everyMs: number | null,
    tell: (outcome: Document | ApiError) => void,
  ) {
    this.#ask = ask
    this.#everyMs = everyMs
    this.#tell = tell
    this.#stopListening = liveEvent.subscribe(() => {
      const due = this.#dueAtMs
      if (
        this.#everyMs !== null &&
        this.#failures === 0 &&
        due !== null &&
        due > 0 &&
        Date.now() >= due
      )
        this.askNow()
    })
  }

  /** From the next question on. */
  askEvery(everyMs: number | null): void {
    this.#everyMs = everyMs
    const due = this.#dueAtMs
    if (everyMs === null || due === null || due <= Date.now() + everyMs) return
    this.#dueAtMs = Date.now() + everyMs
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.askNow(), Math.max(everyMs, WITHOUT_EVENTS_MS))
  }

  askNow(): void {
    clearTimeout(this.#timer)
    this.#abort.abort()
    this.#abort = new AbortController()
    void this.#askOnce(this.#abort.signal)
  }

  end(): void {
    this.#isEnded = true
    this.#stopListening()
    clearTimeout(this.#timer)
    this.#abort.abort()
  }

  async #askOnce(signal: AbortSignal): Promise<void> {
    const startedAtMs = Date.now()
    this.#dueAtMs = null
    let outcome: Document | ApiError
    try {
      outcome = await this.#ask(signal)
    } catch (error) {
      if (signal.aborted) return
      outcome =
        error instanceof ApiError
          ? error
          : new ApiError('failed', 'The page failed to ask', 'Reload the page')
    }
    if (this.#isEnded || signal.aborted) return
    const isFailed = outcome instanceof ApiError
    this.#failures = isFailed ? this.#failures + 1 : 0
    this.#tell(outcome)
    this.#plan(outcome, Date.now() - startedAtMs)
  }

  #plan(outcome: Document | ApiError, tookMs: number): void {
    if (outcome instanceof ApiError) {
      const wait = RETRY_MS[Math.min(this.#failures, RETRY_MS.length) - 1] ?? 0
      if (outcome.isPassing) this.#timer = setTimeout(() => this.askNow(), wait)
      return
    }
    if (this.#everyMs === null) return
    const wait = Math.max(this.#everyMs, tookMs * COST_FACTOR)
    this.#dueAtMs = Date.now() + wait
    this.#timer = setTimeout(() => this.askNow(), Math.max(wait, WITHOUT_EVENTS_MS))
  }
}
