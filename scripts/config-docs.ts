/**
 * The key table of docs/configuration.md, made from the schema: `node scripts/config-docs.ts --write`
 * renews it, `--check` (the default) fails when it is not what the schema says. Text outside of the two
 * marks is kept.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { z } from 'zod'
import { configSchema } from '../src/config/schema.ts'
import { DURATION_PATTERN } from '../src/lib/duration.ts'

type JsonSchema = z.core.JSONSchema.BaseSchema

interface Row {
  readonly key: string
  readonly type: string
  readonly fallback: string
  readonly meaning: string
}

/** The document that holds the table. */
export const configDocument: string = resolve(import.meta.dirname, '../docs/configuration.md')

const begin = '<!-- keys: written by scripts/config-docs.ts -->'
const end = '<!-- end of keys -->'

/** The document with its table as the schema has it now. */
export function withKeyTable(document: string): string {
  const from = document.indexOf(begin)
  const to = document.indexOf(end)
  if (from < 0 || to < from)
    throw new Error(`docs/configuration.md has lost its marks '${begin}' and '${end}'`)
  return `${document.slice(0, from)}${begin}\n\n${keyTable()}\n\n${document.slice(to)}`
}

/** Every key of the configuration as a Markdown table. */
function keyTable(): string {
  const schema = z.toJSONSchema(configSchema, { io: 'input' })
  const rows = rowsOf(schema, '', '').map(
    ({ key, type, fallback, meaning }) => `| ${[key, type, fallback, meaning].join(' | ')} |`,
  )
  return ['| key | value | default | meaning |', '| --- | --- | --- | --- |', ...rows].join('\n')
}

/** The rows of the keys below `schema`. `condition` says for which kind of parent they exist. */
function rowsOf(schema: JsonSchema, prefix: string, condition: string): Row[] {
  const required = new Set(schema.required)
  return Object.entries(schema.properties ?? {}).flatMap(([name, property]) => {
    if (typeof property === 'boolean' || property.const !== undefined) return []
    const key = prefix === '' ? name : `${prefix}.${name}`
    const branches = mapBranches(property)
    if (branches.length > 0) return unionRows(key, property, branches, required.has(name))
    if (property.properties !== undefined) return rowsOf(property, key, condition)
    const row = {
      key: code(key),
      type: typeOf(property),
      fallback: fallbackOf(property, required.has(name)),
      meaning: `${condition}${property.description ?? ''}`,
    }
    const items = property.items
    if (typeof items !== 'object' || Array.isArray(items) || items.properties === undefined)
      return [row]
    return [row, ...rowsOf(items, `${key}[]`, '')]
  })
}

/** A union of maps: one row for itself or for the key that chooses, then the keys of every branch. */
function unionRows(
  key: string,
  property: JsonSchema,
  branches: readonly JsonSchema[],
  isRequired: boolean,
): Row[] {
  const kinds = branches.map((branch) => constantOf(branch, 'kind'))
  const isChosenByKind = kinds.every((kind) => kind !== undefined)
  const own: Row = {
    key: code(isChosenByKind ? `${key}.kind` : key),
    type: isChosenByKind
      ? kinds.map((kind) => code(kind ?? '')).join(', ')
      : 'one of the keys below',
    fallback: isRequired ? 'required' : '–',
    meaning: property.description ?? '',
  }
  return [
    own,
    ...branches.flatMap((branch, index) =>
      rowsOf(
        isChosenByKind ? branch : { ...branch, required: [] },
        key,
        isChosenByKind ? `(${kinds[index] ?? ''}) ` : '',
      ),
    ),
  ]
}

function mapBranches(schema: JsonSchema): readonly JsonSchema[] {
  const branches = schema.oneOf ?? schema.anyOf ?? []
  return branches.filter(
    (branch): branch is JsonSchema => typeof branch === 'object' && branch.properties !== undefined,
  )
}

function constantOf(schema: JsonSchema, key: string): string | undefined {
  const property = schema.properties?.[key]
  if (typeof property !== 'object' || typeof property.const !== 'string') return undefined
  return property.const
}

function typeOf(schema: JsonSchema): string {
  if (schema.enum !== undefined) return schema.enum.map((value) => code(String(value))).join(', ')
  if (schema.anyOf !== undefined)
    return schema.anyOf
      .map((branch) => (typeof branch === 'object' ? typeOf(branch) : ''))
      .join(' or ')
  if (schema.pattern === DURATION_PATTERN) return 'duration'
  if (schema.type === 'array') return 'list'
  if (schema.type === 'boolean') return code('true') + ', ' + code('false')
  if (schema.type === 'integer') return 'whole number'
  return 'text'
}

function fallbackOf(schema: JsonSchema, isRequired: boolean): string {
  if (isRequired) return 'required'
  if (schema.default === undefined) return '–'
  const value: unknown = schema.default
  return Array.isArray(value)
    ? 'none'
    : code(typeof value === 'string' ? value : JSON.stringify(value))
}

function code(text: string): string {
  return `\`${text}\``
}

function main(argv: readonly string[]): void {
  const now = readFileSync(configDocument, 'utf8')
  const wanted = withKeyTable(now)
  if (argv.includes('--write')) {
    if (wanted !== now) writeFileSync(configDocument, wanted)
  } else if (wanted !== now) {
    console.error(
      'docs/configuration.md is not what the schema says; run scripts/config-docs.ts --write',
    )
    process.exitCode = 1
  }
}

if (import.meta.main) main(process.argv.slice(2))
