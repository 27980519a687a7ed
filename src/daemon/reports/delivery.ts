/**
 * Posts reports to one aggregator, over connections that the mesh carries.
 *
 * Of an answer only its status and one number are used. It is short, comes within a deadline, and no redirect is
 * followed: an aggregator can make this host keep or drop records, and nothing else.
 */
import type { Agent } from 'node:http'
import type { Socket } from 'node:net'
import { describeError } from '../../lib/errors.ts'
import { callJson } from '../../lib/json-http.ts'
import { member } from '../../lib/json-value.ts'
import { http } from '../../lib/node-http.ts'
import { type HostReport, REPORT_PATH } from '../../model/report.ts'

/** What became of a report. */
export type Outcome =
  | { readonly kind: 'accepted'; readonly accepted: number }
  /** The aggregator will not take these records, however often they are sent. */
  | { readonly kind: 'refused'; readonly reason: string }
  | { readonly kind: 'failed'; readonly reason: string }

/** Longest time from the dial to the end of the answer, milliseconds. */
const DEADLINE_MS = 10_000

/** Longest answer, bytes. */
const MAX_ANSWER_BYTES = 4_096

/** Answers that will be the same for the same report: it breaks a rule, or is too long. */
const REFUSALS: ReadonlySet<number> = new Set([400, 413, 422])

/** The connection to one aggregator. Disposing it ends the connection and the request under way. */
export class Delivery implements Disposable {
  readonly #agent: Agent
  readonly #ended = new AbortController()

  /** `dial` makes a connection to the aggregator; what it throws is a failure of the report. */
  constructor(dial: () => Socket) {
    this.#agent = new http.Agent({ keepAlive: true, maxSockets: 1, timeout: DEADLINE_MS * 3 })
    this.#agent.createConnection = () => dial()
  }

  /** Sends one report. Never rejects. */
  async post(report: HostReport): Promise<Outcome> {
    try {
      const { status, body } = await callJson(
        (options) => http.request(options),
        {
          agent: this.#agent,
          path: REPORT_PATH,
          signal: AbortSignal.any([AbortSignal.timeout(DEADLINE_MS), this.#ended.signal]),
        },
        { body: report, maxBytes: MAX_ANSWER_BYTES },
      )
      if (REFUSALS.has(status)) return { kind: 'refused', reason: `status ${status}` }
      const accepted = member(body, 'accepted')
      if (status !== 200 || typeof accepted !== 'number' || !Number.isSafeInteger(accepted))
        return { kind: 'failed', reason: `it answers with status ${status}` }
      return { kind: 'accepted', accepted }
    } catch (error) {
      return { kind: 'failed', reason: describeError(error) }
    }
  }

  [Symbol.dispose](): void {
    this.#ended.abort()
    this.#agent.destroy()
  }
}
