/**
 * The one error class of hostmesh.
 *
 * Every failure that is shown or counted has a stable code (`HM_<SUBJECT>_<FAILURE>`), a sentence that
 * states which operation on which object failed, and a hint if the reader can do something about it.
 * Callers switch on `code`, never on the message.
 */

/** Stable identifier of a failure, `HM_<SUBJECT>_<FAILURE>`; part of the public interface (docs/errors.md). */
export type ErrorCode = `HM_${string}`

/** Whether external text has the form of one of our error codes. */
export function isErrorCode(text: unknown): text is ErrorCode {
  return typeof text === 'string' && /^HM_[A-Z0-9_]{1,60}$/.test(text)
}

/** A failure that is shown or counted; see the head of this file. */
export class MeshError extends Error {
  override readonly name = 'MeshError'
  readonly code: ErrorCode
  /** What the reader can do next, in one sentence; undefined when there is nothing to do. */
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; hint?: string } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.hint = options.hint
  }
}

/** The text of any thrown value: the messages of the whole cause chain, outermost first, without repetitions. */
export function describeError(thrown: unknown): string {
  if (!(thrown instanceof Error)) return String(thrown)
  if (thrown.cause === undefined) return thrown.message
  const cause = describeError(thrown.cause)
  return thrown.message.includes(cause) ? thrown.message : `${thrown.message}: ${cause}`
}

/** The machine-readable code of any thrown value (`HM_…`, or Node's `ECONNREFUSED`…), else `HM_INTERNAL`. */
export function errorCode(thrown: unknown): string {
  if (thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string')
    return thrown.code
  return 'HM_INTERNAL'
}
