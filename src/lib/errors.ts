/**
 * The one error class of hostmesh.
 *
 * Every failure that a person or a counter sees carries a stable code (`HM_<SUBJECT>_<FAILURE>`), a
 * sentence that says what could not be done to what, and, where there is something to do about it, a
 * hint. Callers switch on `code`, never on the message.
 */

/** Stable identifier of a failure, `HM_<SUBJECT>_<FAILURE>`; part of the public interface (docs/errors.md). */
export type ErrorCode = `HM_${string}`

/** Whether text from elsewhere has the form of an error code of ours. */
export function isErrorCode(text: unknown): text is ErrorCode {
  return typeof text === 'string' && /^HM_[A-Z0-9_]{1,60}$/.test(text)
}

/** A failure that a person or a counter sees; see the head of this file. */
export class MeshError extends Error {
  override readonly name = 'MeshError'
  readonly code: ErrorCode
  /** What the reader can do next, one sentence; undefined when there is nothing to do. */
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; hint?: string } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.hint = options.hint
  }
}

/** The text of anything thrown: messages of the whole cause chain, outermost first, and none of them twice. */
export function describeError(thrown: unknown): string {
  if (!(thrown instanceof Error)) return String(thrown)
  if (thrown.cause === undefined) return thrown.message
  const cause = describeError(thrown.cause)
  return thrown.message.includes(cause) ? thrown.message : `${thrown.message}: ${cause}`
}

/** The machine-readable code of anything thrown (`HM_…`, or Node's `ECONNREFUSED`…), else `HM_INTERNAL`. */
export function errorCode(thrown: unknown): string {
  if (thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string')
    return thrown.code
  return 'HM_INTERNAL'
}
