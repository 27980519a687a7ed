/**
 * Decodes one L7 permission of an intention, with Consul's keys, from either catalog. Pure.
 *
 * Every key must be known and every condition understood. Ignoring a condition would make the permission match more
 * than was meant, so the result is then a reason, and the whole intention denies.
 */
import { isRecord, member, quoteForMessage } from '../../lib/json-value.ts'
import type { HeaderMatch, IntentionPermission, PathMatch } from '../../model/permission.ts'

/** The permission, or why it cannot be applied (a clause without subject: `has the unknown field "X"`). */
export function decodePermission(value: unknown): IntentionPermission | string {
  const unknownKey = unknownField(value, ['Action', 'HTTP', 'JWT'])
  if (unknownKey !== undefined) return unknownKey
  if (isPresent(member(value, 'JWT'))) return 'has JWT requirements'
  const action = member(value, 'Action')
  if (action !== 'allow' && action !== 'deny') return `has the action ${quoteForMessage(action)}`
  const http = member(value, 'HTTP')
  const unknownHttpKey = unknownField(http, HTTP_FIELDS)
  if (unknownHttpKey !== undefined) return unknownHttpKey
  const path = decodePath(http)
  if (typeof path === 'string') return path
  const methods = decodeMethods(member(http, 'Methods'))
  if (typeof methods === 'string') return methods
  const headers = decodeHeaders(member(http, 'Header'))
  if (typeof headers === 'string') return headers
  if (path === undefined && methods.length === 0 && headers.length === 0)
    return 'has no condition at all'
  return { action, path, methods, headers }
}

const HTTP_FIELDS = ['PathExact', 'PathPrefix', 'PathRegex', 'Header', 'Methods']

const HEADER_FIELDS = [
  'Name',
  'Present',
  'Exact',
  'Prefix',
  'Suffix',
  'Contains',
  'Regex',
  'Invert',
  'IgnoreCase',
]

const HEADER_KINDS = [
  ['Exact', 'exact'],
  ['Prefix', 'prefix'],
  ['Suffix', 'suffix'],
  ['Contains', 'contains'],
  ['Regex', 'regex'],
] as const

const PATH_KINDS = [
  ['PathExact', 'exact'],
  ['PathPrefix', 'prefix'],
  ['PathRegex', 'regex'],
] as const

/** The syntax of method and header names: a token (RFC 9110, 5.6.2). */
const TOKEN = /^[A-Za-z0-9!#$%&'*+.^_`|~-]+$/

/** Whether the value is set: Go writes zero values for fields that are not. */
export function isPresent(value: unknown): boolean {
  return (
    value !== undefined &&
    value !== null &&
    value !== '' &&
    value !== false &&
    !(Array.isArray(value) && value.length === 0)
  )
}

function unknownField(value: unknown, known: readonly string[]): string | undefined {
  if (!isRecord(value)) return `has ${quoteForMessage(value)} where an object belongs`
  const unknown = Object.keys(value).find((key) => !known.includes(key) && isPresent(value[key]))
  return unknown === undefined ? undefined : `has the unknown field ${quoteForMessage(unknown)}`
}

function decodePath(http: unknown): PathMatch | undefined | string {
  const given = PATH_KINDS.filter(([key]) => isPresent(member(http, key)))
  const [first] = given
  if (first === undefined) return undefined
  if (given.length > 1) return 'has more than one condition on the path'
  const [key, kind] = first
  const value = member(http, key)
  if (typeof value !== 'string') return `has ${quoteForMessage(value)} as its ${key}`
  if (kind !== 'regex' && !value.startsWith('/'))
    return `has a ${key} that does not begin with "/": ${quoteForMessage(value)}`
  return { kind, value }
}

function decodeMethods(value: unknown): readonly string[] | string {
  if (!isPresent(value)) return []
  if (!Array.isArray(value)) return `has ${quoteForMessage(value)} as its Methods`
  const methods: string[] = []
  for (const method of value) {
    if (typeof method !== 'string' || !TOKEN.test(method))
      return `has the method ${quoteForMessage(method)}`
    methods.push(method.toUpperCase())
  }
  return methods
}

function decodeHeaders(value: unknown): readonly HeaderMatch[] | string {
  if (!isPresent(value)) return []
  if (!Array.isArray(value)) return `has ${quoteForMessage(value)} as its Header`
  const headers: HeaderMatch[] = []
  for (const entry of value) {
    const header = decodeHeader(entry)
    if (typeof header === 'string') return header
    headers.push(header)
  }
  return headers
}

function decodeHeader(entry: unknown): HeaderMatch | string {
  const unknownKey = unknownField(entry, HEADER_FIELDS)
  if (unknownKey !== undefined) return unknownKey
  const name = member(entry, 'Name')
  if (typeof name !== 'string' || !TOKEN.test(name))
    return `has the header ${quoteForMessage(name)}`
  const invert = flag(entry, 'Invert')
  const ignoreCase = flag(entry, 'IgnoreCase')
  const present = flag(entry, 'Present')
  if (invert === undefined || ignoreCase === undefined || present === undefined)
    return `has a condition on the header ${name} that is neither true nor false`
  const given = HEADER_KINDS.filter(([key]) => isPresent(member(entry, key)))
  if (given.length + Number(present) !== 1)
    return `has ${given.length + Number(present)} conditions on the header ${name}; there must be one`
  const [first] = given
  const common = { name: name.toLowerCase(), invert, ignoreCase }
  if (first === undefined) return { ...common, kind: 'present', value: '' }
  const [key, kind] = first
  const text = member(entry, key)
  return typeof text === 'string'
    ? { ...common, kind, value: text }
    : `has ${quoteForMessage(text)} as ${key} of the header ${name}`
}

/** An optional boolean, false by default; undefined for anything else. */
function flag(entry: unknown, key: string): boolean | undefined {
  const value = member(entry, key) ?? false
  return typeof value === 'boolean' ? value : undefined
}
