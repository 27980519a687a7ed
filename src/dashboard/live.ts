/**
 * The live events of the aggregator, and whether they still come: one stream for the whole page, opened again for as long
 * as it is open.
 */
import { type ReadonlySignal, type Signal, signal } from '@preact/signals'

import type { LiveEvent } from '../model/fleet.ts'
import { ApiError, openLive, token } from './api.ts'

/** What is known of the stream. */
export interface LiveStatus {
  /** `waiting`: nothing has come yet. `lost`: an event is overdue, or the connection is gone. */
  readonly state: 'waiting' | 'live' | 'lost'
  /** When the last event came, by the reader's clock. */
  readonly lastAtMs: number | null
  readonly error: ApiError | null
}

/** An event comes every second: after so long without one, the picture is called old. */
const OVERDUE_MS = 3_500
/** A stream that has been silent for so long is opened anew. */
const SILENT_MS = 10_000
const FIRST_RETRY_MS = 1_000
const LONGEST_RETRY_MS = 10_000
/** Longer than an event of the largest graph. */
const LONGEST_EVENT = 64 * 1_024 * 1_024

const lastEvent: Signal<LiveEvent | null> = signal(null)
const status: Signal<LiveStatus> = signal({ state: 'waiting', lastAtMs: null, error: null })

/** The newest event; null before the first. */
export const liveEvent: ReadonlySignal<LiveEvent | null> = lastEvent
/** Whether events come. */
export const liveStatus: ReadonlySignal<LiveStatus> = status

/** Follows the stream, for as long as the page is open. */
export async function followLive(): Promise<never> {
  setInterval(lookWhetherOverdue, 500)
  for (let retryMs = FIRST_RETRY_MS; ; retryMs = Math.min(LONGEST_RETRY_MS, retryMs * 2)) {
    const startedAtMs = Date.now()
    try {
      await readStream()
      markLost(null)
    } catch (error) {
      markLost(error instanceof ApiError ? error : null)
    }
    if ((status.peek().lastAtMs ?? 0) > startedAtMs) retryMs = FIRST_RETRY_MS
    await pause(retryMs * (0.75 + Math.random() / 2))
  }
}

function lookWhetherOverdue(): void {
  const { state, lastAtMs } = status.peek()
  if (state === 'live' && Date.now() - (lastAtMs ?? 0) > OVERDUE_MS) markLost(null)
}

function markLost(error: ApiError | null): void {
  status.value = { ...status.peek(), state: 'lost', error }
}

async function readStream(): Promise<void> {
  const abort = new AbortController()
  let silence = setTimeout(() => abort.abort(), SILENT_MS)
  try {
    const reader = (await openLive(abort.signal)).getReader()
    const decoder = new TextDecoder()
    let text = ''
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      clearTimeout(silence)
      silence = setTimeout(() => abort.abort(), SILENT_MS)
      text = takeEvents(text + decoder.decode(value, { stream: true }).replaceAll('\r', ''))
      if (text.length > LONGEST_EVENT) return
    }
  } finally {
    clearTimeout(silence)
    abort.abort()
  }
}

/** Takes the complete events from the beginning of a text and returns its rest; only the newest event counts. */
function takeEvents(text: string): string {
  const end = text.lastIndexOf('\n\n')
  if (end < 0) return text
  const blocks = text.slice(0, end).split('\n\n')
  for (const block of blocks.toReversed()) {
    const data = block
      .split('\n')
      .filter((line) => line.startsWith('data:'))
      .map((line) => line.slice('data:'.length))
      .join('\n')
    if (data === '') continue
    // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the aggregator checks what it sends
    const event = JSON.parse(data) as LiveEvent
    if (typeof event.graph !== 'object') continue
    // In a task of its own: parsing a large one is work enough for one frame.
    setTimeout(() => {
      lastEvent.value = event
      status.value = { state: 'live', lastAtMs: Date.now(), error: null }
    })
    break
  }
  return text.slice(end + 2)
}

/** Waits, or until the reader has given another token. */
function pause(ms: number): Promise<void> {
  return new Promise((resolve) => {
    const before = token.peek()
    const stop = token.subscribe((now) => {
      if (now !== before) end()
    })
    const timer = setTimeout(end, ms)
    function end(): void {
      clearTimeout(timer)
      queueMicrotask(() => stop())
      resolve()
    }
  })
}
