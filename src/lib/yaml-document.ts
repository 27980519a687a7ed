/**
 * Validates YAML text against a zod schema: returns the value, or all violations with line and column.
 *
 * Stricter than YAML: duplicate keys, unknown tags, keys that are not plain text, several documents and
 * an empty document are errors. Limited: the expansion of aliases is bounded, and nesting that exhausts the stack
 * is an error like any other. Independent of the document's subject.
 */
import {
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  type Node,
  type Pair,
  parseDocument,
  type YAMLMap,
} from 'yaml'
import type { z } from 'zod'
import { describeError } from './errors.ts'
import { explainIssues, type Violation } from './schema-issues.ts'

/** The location of a value in a document: keys and list positions from the top. */
export type DocumentPath = readonly (string | number)[]

/** A place in the text, both counted from 1. */
export interface TextPosition {
  readonly line: number
  readonly column: number
}

/** One problem of a document. */
export interface DocumentProblem {
  /** Undefined when the problem is not in the text: the file as a whole, or the environment. */
  readonly position: TextPosition | undefined
  readonly path: DocumentPath
  readonly message: string
}

/** A document that satisfies its schema. */
export interface YamlDocument<T> {
  readonly value: T
  /** Whether the text itself contains a value there (a default does not count). */
  has(path: DocumentPath): boolean
  /** The problem `message` at `path`, with the position of the nearest part that is in the text. */
  problemAt(path: DocumentPath, message: string): DocumentProblem
}

/** The result of {@link parseYamlDocument}. */
export type ParsedYaml<T> =
  | { readonly document: YamlDocument<T> }
  | { readonly problems: readonly DocumentProblem[] }

/** Maximum number of problems reported for one document; the rest is counted. */
const MAX_PROBLEMS = 100

/** Maximum total number of nodes that aliases of one anchor stand for. */
const MAX_ALIAS_COUNT = 100

/** Maximum number of aliases in one document: to resolve one, the parser walks the document up to it. */
const MAX_ALIASES = 500

/** Parses and validates. Never throws, for any text. */
export function parseYamlDocument<T>(text: string, schema: z.ZodType<T>): ParsedYaml<T> {
  try {
    return parse(text, schema)
  } catch (thrown) {
    // The parser recurses: hostile nesting ends it with a RangeError, a hostile alias with a ReferenceError.
    const reason = thrown instanceof RangeError ? 'it is nested too deeply' : describeError(thrown)
    return {
      problems: [{ position: undefined, path: [], message: `Cannot parse YAML: ${reason}` }],
    }
  }
}

/** `file:line:column: path: message`, without the parts that the problem lacks. */
function formatProblem(fileName: string, problem: DocumentProblem): string {
  const place =
    problem.position === undefined ? '' : `:${problem.position.line}:${problem.position.column}`
  const path = formatPath(problem.path)
  return `${fileName}${place}: ${path === '' ? '' : `${path}: `}${problem.message}`
}

/** All problems, one per line, in the order of the text; after 100 only the number of the rest. */
export function formatProblems(fileName: string, problems: readonly DocumentProblem[]): string[] {
  const inOrder = problems.toSorted(
    (a, b) =>
      (a.position?.line ?? 0) - (b.position?.line ?? 0) ||
      (a.position?.column ?? 0) - (b.position?.column ?? 0),
  )
  const lines = inOrder.slice(0, MAX_PROBLEMS).map((problem) => formatProblem(fileName, problem))
  if (inOrder.length > MAX_PROBLEMS)
    lines.push(`${fileName}: ${inOrder.length - MAX_PROBLEMS} more problems are not shown`)
  return lines
}

/** `services[0].upstreams[1].bindPort`. */
function formatPath(path: DocumentPath): string {
  return path
    .map((step, index) =>
      typeof step === 'number' ? `[${step}]` : `${index === 0 ? '' : '.'}${step}`,
    )
    .join('')
}

function parse<T>(text: string, schema: z.ZodType<T>): ParsedYaml<T> {
  const lines = new LineCounter()
  // uniqueKeys compares every pair of keys; checkKeys() does it in one pass.
  const tree = parseDocument(text, {
    lineCounter: lines,
    prettyErrors: false,
    uniqueKeys: false,
    // 'silent' would drop the error about a second document too.
    logLevel: 'error',
  })
  const at = (offset: number): TextPosition => {
    const { line, col } = lines.linePos(offset)
    return { line: Math.max(1, line), column: Math.max(1, col) }
  }
  const syntax = [...tree.errors, ...tree.warnings].map(
    (error): DocumentProblem => ({
      position: at(error.pos[0]),
      path: [],
      message: explainSyntax(error.code, error.message),
    }),
  )
  if (syntax.length > 0) return { problems: syntax }
  if (tree.contents === null || (isScalar(tree.contents) && tree.contents.value === null))
    return { problems: [{ position: undefined, path: [], message: 'The file is empty' }] }
  const keys: DocumentProblem[] = []
  const aliases = checkKeys(tree.contents, [], at, keys)
  if (aliases > MAX_ALIASES)
    return {
      problems: [
        {
          position: undefined,
          path: [],
          message: `The file has ${aliases} aliases, at most ${MAX_ALIASES} are taken`,
        },
      ],
    }
  if (keys.length > 0) return { problems: keys }

  const raw: unknown = tree.toJS({ maxAliasCount: MAX_ALIAS_COUNT })
  const place = (path: DocumentPath, key?: string): TextPosition =>
    at(locate(tree, path, key) ?? tree.contents?.range?.[0] ?? 0)
  const result = schema.safeParse(raw)
  if (!result.success) {
    const toProblem = (violation: Violation): DocumentProblem => ({
      position: place(violation.path, violation.key),
      path: violation.path,
      message: violation.message,
    })
    return { problems: explainIssues(result.error.issues, raw, schema).map(toProblem) }
  }
  return {
    document: {
      value: result.data,
      has: (path) => nodeAt(tree, path) !== undefined,
      problemAt: (path, message) => ({ position: place(path), path, message }),
    },
  }
}

function explainSyntax(code: string, message: string): string {
  if (code === 'MULTIPLE_DOCS') return 'The file must hold one document; a second one begins here'
  if (code === 'TAB_AS_INDENT') return 'Tabs are not allowed as indentation; use spaces'
  return message.split('\n')[0] ?? message
}

/** Reports duplicate keys, and keys that are not plain text. Returns the number of aliases. */
function checkKeys(
  node: Node | null,
  path: DocumentPath,
  at: (offset: number) => TextPosition,
  problems: DocumentProblem[],
): number {
  let aliases = 0
  if (isSeq<Node>(node)) {
    for (const [index, item] of node.items.entries())
      aliases += checkKeys(item, [...path, index], at, problems)
    return aliases
  }
  if (!isMap<Node, Node | null>(node)) return isAlias(node) ? 1 : 0
  const lineByKey = new Map<string, number>()
  for (const pair of node.items) {
    const position = at(pair.key?.range?.[0] ?? node.range?.[0] ?? 0)
    const key = keyOf(pair)
    if (key === undefined) {
      problems.push({ position, path, message: 'A key must be plain text' })
      continue
    }
    const firstLine = lineByKey.get(key)
    if (firstLine === undefined) lineByKey.set(key, position.line)
    else
      problems.push({
        position,
        path,
        message: `Duplicate key "${key}", first given in line ${firstLine}`,
      })
    aliases += checkKeys(pair.value, [...path, key], at, problems)
  }
  return aliases
}

function keyOf(pair: Pair): string | undefined {
  const { key } = pair
  if (!isScalar(key)) return undefined
  const { value } = key
  // `__proto__` would be lost in plain objects.
  if (typeof value === 'string') return value === '__proto__' ? undefined : value
  return typeof value === 'number' || typeof value === 'boolean' ? String(value) : undefined
}

/** Offset of `key` in the map at `path`, or of the value at `path`, or of its nearest parent. */
function locate(tree: Document, path: DocumentPath, key?: string): number | undefined {
  if (key !== undefined) {
    const pair = pairAt(tree, [...path, key])
    if (isScalar(pair?.key) && pair.key.range) return pair.key.range[0]
  }
  for (let length = path.length; length > 0; length -= 1) {
    const part = path.slice(0, length)
    const pair = pairAt(tree, part)
    const node = nodeAt(tree, part)
    const hasText = node?.range && node.range[1] > node.range[0]
    // A missing key is reported at its parent's key, where a reader looks for it.
    const toKey = length < path.length || !hasText
    if (toKey && isScalar(pair?.key) && pair.key.range) return pair.key.range[0]
    if (node?.range) return node.range[0]
  }
  return undefined
}

function pairAt(tree: Document, path: DocumentPath): Pair | undefined {
  const parent = resolved(tree, nodeAt(tree, path.slice(0, -1)))
  const last = path.at(-1)
  return isMap(parent) && last !== undefined ? pairOf(parent, last) : undefined
}

/** The pairs of maps already searched: a large map with many problems would be searched again for each of them. */
const pairsByMap = new WeakMap<YAMLMap, ReadonlyMap<string, Pair>>()

function pairOf(map: YAMLMap, key: string | number): Pair | undefined {
  let pairs = pairsByMap.get(map)
  if (pairs === undefined) {
    pairs = new Map(
      map.items.flatMap((pair): [string, Pair][] => {
        const name = keyOf(pair)
        return name === undefined ? [] : [[name, pair]]
      }),
    )
    pairsByMap.set(map, pairs)
  }
  return pairs.get(String(key))
}

function nodeAt(tree: Document, path: DocumentPath): Node | undefined {
  let node: unknown = tree.contents
  for (const step of path) {
    const parent = resolved(tree, node)
    if (isSeq(parent) && typeof step === 'number') node = parent.items[step]
    else if (isMap(parent)) node = pairOf(parent, step)?.value
    else return undefined
  }
  return isScalar(node) || isMap(node) || isSeq(node) || isAlias(node) ? node : undefined
}

function resolved(tree: Document, node: unknown): unknown {
  return isAlias(node) ? node.resolve(tree) : node
}
