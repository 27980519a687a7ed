/**
 * Turns zod's issues into sentences that a person can act on, with "did you mean".
 *
 * The suggested words come from the JSON schema of the same zod schema, so that they are not
 * listed twice. A message quotes a value only if a rule about its form failed: secrets are
 * free text, so they are never quoted.
 */
import { z } from 'zod'
import { closestWord } from './closest-word.ts'
import { DURATION_PATTERN } from './duration.ts'
import { isRecord } from './json-value.ts'

/** One violation. `key` is set when it concerns a key of the map at `path`, not its value. */
export interface Violation {
  readonly path: readonly (string | number)[]
  readonly key?: string
  readonly message: string
}

type Issue = z.core.$ZodIssue
type JsonSchema = z.core.JSONSchema.BaseSchema
type Path = readonly (string | number)[]

/** Explains the issues of one parse; `raw` is the parsed value. */
export function explainIssues(
  issues: readonly Issue[],
  raw: unknown,
  schema: z.ZodType,
): Violation[] {
  const root = z.toJSONSchema(schema, { io: 'input', unrepresentable: 'any' })
  return issues.flatMap((issue) => explain(issue, [], raw, root))
}

function explain(issue: Issue, base: Path, raw: unknown, root: JsonSchema): Violation[] {
  const path = [...base, ...issue.path.map((step) => (typeof step === 'symbol' ? '' : step))]
  const value = valueAt(raw, path)
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => unknownKey(path, key, knownKeys(root, path, raw)))
    case 'invalid_union':
      return explainUnion(issue, path, raw, root)
    case 'invalid_value':
      return [{ path, message: oneOf(issue.values.map(String), value) }]
    case 'invalid_type':
      return [
        {
          path,
          message:
            typeof value === 'number' && isDuration(root, path, raw)
              ? `Must be a duration, got a number; give it a unit: ${value}s or ${value}ms`
              : wrongType(issue.expected, value),
        },
      ]
    case 'too_big':
    case 'too_small':
      return [{ path, message: outOfBounds(issue, value) }]
    case 'custom':
    case 'invalid_format':
    case 'invalid_key':
    case 'invalid_element':
    case 'not_multiple_of':
      return [{ path, message: `${issue.message}${gotValue(value)}` }]
  }
}

type UnionIssue = Extract<Issue, { code: 'invalid_union' }>

function explainUnion(issue: UnionIssue, path: Path, raw: unknown, root: JsonSchema): Violation[] {
  if ('options' in issue && Array.isArray(issue.options))
    return [{ path, message: oneOf(issue.options.map(String), valueAt(raw, path)) }]
  const value = valueAt(raw, path)
  const branches = issue.errors
  if (!isRecord(value)) {
    const sameType = branches.find((branch) =>
      branch.every((inner) => inner.code !== 'invalid_type' || inner.path.length > 0),
    )
    if (sameType !== undefined) return sameType.flatMap((inner) => explain(inner, path, raw, root))
    const expected = branches.flatMap((branch) =>
      branch.flatMap((inner) => (inner.code === 'invalid_type' ? [typeName(inner.expected)] : [])),
    )
    return [
      { path, message: `Must be ${[...new Set(expected)].join(' or ')}, got ${nameOf(value)}` },
    ]
  }
  // Branches of a union of maps differ in their keys: use the branch whose keys occur.
  const known = knownKeys(root, path, raw)
  const used = Object.keys(value).filter((key) => known.includes(key))
  const unknown = Object.keys(value).filter((key) => !known.includes(key))
  if (unknown.length > 0) return unknown.map((key) => unknownKey(path, key, known))
  const fitting = branches.filter((branch) =>
    branch.every((inner) => inner.code !== 'unrecognized_keys' || inner.path.length > 0),
  )
  if (used.length > 0 && fitting.length === 1)
    return (fitting[0] ?? []).flatMap((inner) => explain(inner, path, raw, root))
  return [{ path, message: `Must have exactly one of the keys ${known.join(', ')}` }]
}

function unknownKey(path: Path, key: string, known: readonly string[]): Violation {
  const meant = closestWord(key, known)
  const hint = meant === undefined ? `known here: ${known.join(', ')}` : `did you mean "${meant}"?`
  return { path, key, message: `Unknown key ${quote(key)}; ${hint}` }
}

function oneOf(allowed: readonly string[], value: unknown): string {
  const meant = typeof value === 'string' ? closestWord(value, allowed) : undefined
  const hint = meant === undefined ? '' : `; did you mean "${meant}"?`
  if (typeof value === 'number' && allowed.includes(String(value)))
    return `Must be text, got a number; write it in quotes: "${value}"`
  const must = allowed.length === 1 ? 'Must be' : 'Must be one of'
  return `${must} ${allowed.join(', ')}${gotValue(value)}${hint}`
}

function wrongType(expected: string, value: unknown): string {
  if (value === undefined) return `Is missing; must be ${typeName(expected)}`
  const got = nameOf(value)
  if (typeof value === 'string' && /^-?\d+$/.test(value) && /^(int|number)$/.test(expected))
    return `Must be ${typeName(expected)}, got ${got}; write it without quotes`
  if (typeof value === 'string' && expected === 'boolean')
    return `Must be true or false, got ${quote(value)}`
  if (typeof value === 'number' && expected === 'string')
    return `Must be text, got a number; write it in quotes`
  if (typeof value === 'number' && expected === 'int') return `Must be a whole number, got ${value}`
  if (value === null)
    return `Must be ${typeName(expected)}, got nothing; give it a value, or leave out a key that is optional`
  return `Must be ${typeName(expected)}, got ${got}`
}

function outOfBounds(
  issue: Extract<Issue, { code: 'too_big' | 'too_small' }>,
  value: unknown,
): string {
  const limit = issue.code === 'too_big' ? `at most ${issue.maximum}` : `at least ${issue.minimum}`
  if (Array.isArray(value)) return `Must have ${limit} entries, has ${value.length}`
  if (typeof value === 'string') return `Must have ${limit} characters, has ${value.length}`
  return `Must be ${limit}${gotValue(value)}`
}

/** The keys allowed in the map at `path`. */
function knownKeys(root: JsonSchema, path: Path, raw: unknown): string[] {
  const schemas = schemasAt(root, path, raw)
  return [...new Set(schemas.flatMap((schema) => Object.keys(schema.properties ?? {})))]
}

function isDuration(root: JsonSchema, path: Path, raw: unknown): boolean {
  return schemasAt(root, path, raw).some(({ pattern }) => pattern === DURATION_PATTERN)
}

/** The schemas allowed at `path`, given the branches of unions that `raw` selects on the way. */
function schemasAt(root: JsonSchema, path: Path, raw: unknown): JsonSchema[] {
  let schemas = alternatives(root, raw)
  let value: unknown = raw
  for (const step of path) {
    value = valueAt(value, [step])
    const inner = value
    schemas = schemas.flatMap((schema) => {
      const next = typeof step === 'number' ? schema.items : schema.properties?.[step]
      return isRecord(next) ? alternatives(next, inner) : []
    })
  }
  return schemas
}

/** The schema itself, or the branches of its union that do not contradict a constant in `value`. */
function alternatives(schema: JsonSchema, value: unknown): JsonSchema[] {
  const branches = schema.anyOf ?? schema.oneOf
  if (branches === undefined) return [schema]
  return branches
    .flatMap((branch) => alternatives(branch, value))
    .filter((branch) =>
      Object.entries(branch.properties ?? {}).every(
        ([key, property]) =>
          !isRecord(property) ||
          property['const'] === undefined ||
          property['const'] === valueAt(value, [key]),
      ),
    )
}

function valueAt(raw: unknown, path: Path): unknown {
  let value = raw
  for (const step of path) {
    if (Array.isArray(value) && typeof step === 'number') value = value[step]
    else if (isRecord(value) && Object.hasOwn(value, step)) value = value[String(step)]
    else return undefined
  }
  return value
}

const TYPE_NAMES: Record<string, string> = {
  string: 'text',
  int: 'a whole number',
  number: 'a number',
  boolean: 'true or false',
  object: 'a map of keys and values',
  array: 'a list',
}

function typeName(expected: string): string {
  return TYPE_NAMES[expected] ?? expected
}

function nameOf(value: unknown): string {
  if (value === undefined || value === null) return 'nothing'
  if (Array.isArray(value)) return 'a list'
  if (isRecord(value)) return 'a map'
  return typeof value === 'string' ? 'text' : `a ${typeof value}`
}

/** `, got …` for a scalar; a quoted map or list would not help. */
function gotValue(value: unknown): string {
  if (typeof value === 'string') return `, got ${quote(value)}`
  if (typeof value === 'number' || typeof value === 'boolean') return `, got ${value}`
  return value === undefined ? ', got nothing' : ''
}

function quote(text: string): string {
  return JSON.stringify(text.length > 80 ? `${text.slice(0, 80)}…` : text)
}
