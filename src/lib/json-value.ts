/**
 * Reads untrusted JSON: members are read only where they exist as data, and values are shown in messages
 * without showing a whole answer.
 */

/** Parses JSON text; undefined when it is not JSON. */
export function parseJson(text: Buffer | string): unknown {
  try {
    return JSON.parse(text.toString())
  } catch {
    return undefined
  }
}

/** Whether a value is a JSON object: neither null nor a list. */
export function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** An own property of a JSON object; undefined for anything else (`__proto__` is an ordinary name here). */
export function member(value: unknown, key: string): unknown {
  return isRecord(value) && Object.hasOwn(value, key) ? value[key] : undefined
}

/** A value formatted for a message: short, printable, and never a whole answer. */
export function quoteForMessage(value: unknown): string {
  if (Array.isArray(value)) return 'a list'
  if (isRecord(value)) return 'an object'
  const text = JSON.stringify(typeof value === 'string' ? value.slice(0, 80) : value) ?? 'nothing'
  return text.replace(/[^\x20-\x7e]+/g, ' ')
}
