/**
 * Answers about spans of the past that are given again until a record is stored that belongs into the span.
 *
 * The documents of all pages are made from the same sums of the last minute, and these change only when the span moves
 * on, every 10 s, or a record comes late.
 */
import type { Span } from './fleet-store.ts'

/** How long an answer is kept; what a span covers may be deleted or replaced meanwhile. */
const KEPT_MS = 10_000

/** A span whose end is older is not asked for again and again. */
const RECENT_MS = 60_000

/** Most answers: each may have megabytes. */
const MAX_ANSWERS = 4

interface Entry<T> {
  readonly span: Span
  readonly askedAtMs: number
  readonly answer: Promise<T>
}

/** See the head of this file. Times are of one clock, which the caller chooses. */
export class RecentAnswers<T> {
  readonly #entries = new Map<string, Entry<T>>()

  /** The answer that is kept, else that of `ask`. A failure is not kept. */
  get(span: Span, nowMs: number, ask: () => Promise<T>): Promise<T> {
    this.expire(nowMs)
    const key = `${span.fromMs} ${span.toMs}`
    const known = this.#entries.get(key)
    if (known !== undefined) return known.answer
    const entry: Entry<T> = { span, askedAtMs: nowMs, answer: ask() }
    this.#entries.set(key, entry)
    const [oldest] = this.#entries.keys()
    if (this.#entries.size > MAX_ANSWERS && oldest !== undefined) this.#entries.delete(oldest)
    entry.answer.catch(() => {
      if (this.#entries.get(key) === entry) this.#entries.delete(key)
    })
    return entry.answer
  }

  /** A record was stored for the time from `fromMs` to `toMs`. */
  changed(fromMs: number, toMs: number): void {
    for (const [key, { span }] of this.#entries)
      if (fromMs < span.toMs && toMs > span.fromMs) this.#entries.delete(key)
  }

  /** Forgets what is too old. */
  expire(nowMs: number): void {
    for (const [key, { span, askedAtMs }] of this.#entries)
      if (Math.abs(nowMs - askedAtMs) >= KEPT_MS || span.toMs < nowMs - RECENT_MS)
        this.#entries.delete(key)
  }
}
