/**
 * Removes from text whatever may be a secret: known values, and what looks like one. Pure.
 *
 * Rather too much than too little: a long random text is removed even if it is only an identifier.
 */

/** In place of a secret. */
const REDACTED = '(redacted)'

/** Shorter values are words, which would be removed everywhere. */
const LEAST_SECRET = 6

/** Names of values that are secrets. A name that ends with "file" has a path. */
const SECRET_NAME =
  '(?:token|secret|passw(?:or)?d|passphrase|credentials?|api[-_]?key|access[-_]?key|private[-_]?key|key[-_]?pem|authorization|cookie|bearer|signature)'

const NAME = `[\\w.-]*${SECRET_NAME}(?!\\w*[-_]?files?\\b)[\\w.-]*`

/** A name, `:` or `=`, and a value in quotes (which may be escaped, as JSON in JSON has them) or up to a separator. */
const NAMED = new RegExp(
  `(${NAME}\\\\*["']?\\s*[:=]\\s*)(?:(\\\\*")(?:(?!\\2).)*\\2|(')[^'\\n]*'|[^\\s,;}&]+)`,
  'gi',
)

/** A header without quotes: its value may have several words. */
const HEADER = /((?:proxy-)?(?:authorization|cookie)\s*[:=]\s*)(?!\\*["'])[^\n]*/gi

const PATTERNS: readonly (readonly [pattern: RegExp, replacement: string])[] = [
  [
    /-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|$)/g,
    REDACTED,
  ],
  // User and password in an address.
  [/(\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@"']+@/gi, `$1${REDACTED}@`],
  [/\b(bearer|basic|digest|negotiate)(\s+)(?!\(redacted\))[\w+/=.~-]{6,}/gi, `$1$2${REDACTED}`],
  // A join token of the CA.
  [/\bhm1\.[\w-]+/g, REDACTED],
  // A signed token: three parts in base64.
  [/\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*/g, REDACTED],
  // Tokens of Consul are UUIDs; so is the trust domain of its CA, which is public.
  [/\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b(?!\.consul\b)/gi, REDACTED],
  [/\b[0-9a-fA-F]{32,}\b/g, REDACTED],
  // Long text in base64: upper and lower case and digits.
  [/(?<![\w+/=-])(?=[\w+/-]*[a-z])(?=[\w+/-]*[A-Z])(?=[\w+/-]*\d)[\w+/-]{32,}={0,2}/g, REDACTED],
]

/** The text without secrets. `known` are values that are removed wherever they are. */
export function redact(text: string, known: Iterable<string> = []): string {
  let result = text
  const values = [...known].filter((value) => value.length >= LEAST_SECRET)
  // The longest first: one may contain another.
  for (const value of values.toSorted((a, b) => b.length - a.length)) {
    result = result.replaceAll(value, REDACTED)
    const escaped = JSON.stringify(value).slice(1, -1)
    if (escaped !== value) result = result.replaceAll(escaped, REDACTED)
  }
  const [pem, ...others] = PATTERNS
  if (pem !== undefined) result = result.replace(pem[0], pem[1])
  result = result.replace(HEADER, `$1${REDACTED}`)
  result = result.replace(
    NAMED,
    (_, name: string, double: string | undefined, single: string | undefined) => {
      const quote = double ?? single ?? ''
      return `${name}${quote}${REDACTED}${quote}`
    },
  )
  for (const [pattern, replacement] of others) result = result.replace(pattern, replacement)
  return result
}

const SECRET_KEY = new RegExp(`^${NAME}$`, 'i')

/** A JSON value without secrets: every text of it, keys too, and the values of keys that name a secret. */
export function redactValue(value: unknown, known: readonly string[] = []): unknown {
  if (typeof value === 'string') return redact(value, known)
  if (Array.isArray(value)) return value.map((each: unknown) => redactValue(each, known))
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]: [string, unknown]) => [
      redact(key, known),
      SECRET_KEY.test(key) && typeof inner === 'string' ? REDACTED : redactValue(inner, known),
    ]),
  )
}
