/**
 * The one client of the aggregator's API: documents of src/model/fleet.ts, or an error that says what to do.
 */
import { signal as makeSignal, type Signal } from '@preact/signals'

import type { FleetDocuments } from '../model/fleet.ts'

/** Parameters of a document; undefined ones are left out. */
export type Query = Readonly<Record<string, string | undefined>>

/** Why there is no document. */
export type Failure =
  /** No answer, or none in time. */
  | 'unreachable'
  /** The reader has to say who they are (401), or may not see it (403). */
  | 'unauthorized'
  | 'forbidden'
  | 'notFound'
  /** The aggregator calls the question wrong (other 4xx). */
  | 'refused'
  /** The aggregator failed (5xx), or answered what is no document. */
  | 'failed'

/** An answer that is no document. */
export class ApiError extends Error {
  readonly failure: Failure
  readonly hint: string

  constructor(failure: Failure, message: string, hint: string) {
    super(message)
    this.failure = failure
    this.hint = hint
  }

  /** Whether it may go away by itself. */
  get isPassing(): boolean {
    return this.failure === 'unreachable' || this.failure === 'failed'
  }
}

const ROOT = '/api/v1'
const TIMEOUT_MS = 15_000
const TOKEN_KEY = 'hostmesh-token'

/** The reader's bearer token, '' without one. Kept until the tab is closed. */
export const token: Signal<string> = makeSignal(sessionStorage.getItem(TOKEN_KEY) ?? '')

/** Takes a token for all further questions; '' forgets it. */
export function setToken(text: string): void {
  if (text === '') sessionStorage.removeItem(TOKEN_KEY)
  else sessionStorage.setItem(TOKEN_KEY, text)
  token.value = text
}

/** Asks for a document. Rejects with {@link ApiError}, or with the reason of `signal`. */
export async function getDocument<Name extends keyof FleetDocuments>(
  name: Name,
  query: Query,
  signal: AbortSignal,
): Promise<FleetDocuments[Name]> {
  const answer = await ask(`${ROOT}/${name}${queryText(query)}`, 'application/json', signal, true)
  try {
    const document: unknown = await answer.json()
    if (typeof document === 'object' && document !== null && 'coverage' in document)
      // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- the aggregator checks what it answers
      return document as FleetDocuments[Name]
  } catch (error) {
    if (signal.aborted) throw error
  }
  throw new ApiError(
    'failed',
    `The answer to /${name} is no document`,
    'Look whether a proxy between here and the aggregator answers for it',
  )
}

/** Opens the stream of live events. Rejects as {@link getDocument} does. */
export async function openLive(signal: AbortSignal): Promise<ReadableStream<Uint8Array>> {
  const answer = await ask(`${ROOT}/live`, 'text/event-stream', signal, false)
  if (answer.body !== null) return answer.body
  throw new ApiError('failed', 'The live stream is empty', 'Try again')
}

async function ask(
  url: string,
  accept: string,
  signal: AbortSignal,
  isShort: boolean,
): Promise<Response> {
  const headers = new Headers({ accept })
  if (token.peek() !== '') headers.set('authorization', `Bearer ${token.peek()}`)
  const limit = isShort ? AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]) : signal
  let answer: Response
  try {
    answer = await fetch(url, { headers, signal: limit, cache: 'no-store' })
  } catch (error) {
    if (signal.aborted) throw error
    throw new ApiError(
      'unreachable',
      'The aggregator does not answer',
      'Look whether it runs: systemctl status hostmesh-aggregator',
    )
  }
  if (answer.ok) return answer
  throw await errorOf(answer)
}

/** The aggregator says what is wrong as `{"error": {"code", "message", "hint"}}`. */
async function errorOf(answer: Response): Promise<ApiError> {
  const said: unknown = await answer.json().catch(() => undefined)
  const error = field(said, 'error')
  const message = field(error, 'message')
  const hint = field(error, 'hint')
  const [failure, fallback, next] = meaningOf(answer.status)
  return new ApiError(
    failure,
    typeof message === 'string' ? message : fallback,
    typeof hint === 'string' ? hint : next,
  )
}

function meaningOf(status: number): [Failure, string, string] {
  if (status === 401)
    return ['unauthorized', 'The aggregator wants to know who you are', 'Enter a bearer token']
  if (status === 403)
    return ['forbidden', 'You have no right to see this', 'It takes the role viewer']
  if (status === 404)
    return ['notFound', 'The fleet does not have this', 'It may have had another name at that time']
  if (status < 500)
    return ['refused', `The aggregator refused the question (${status})`, 'Reload the page']
  return [
    'failed',
    `The aggregator failed (${status})`,
    'Its log says why: journalctl -u hostmesh-aggregator',
  ]
}

function field(value: unknown, name: string): unknown {
  return typeof value === 'object' && value !== null ? Reflect.get(value, name) : undefined
}

function queryText(query: Query): string {
  const text = new URLSearchParams(
    Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined),
  ).toString()
  return text === '' ? '' : `?${text}`
}
