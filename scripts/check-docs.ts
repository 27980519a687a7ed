/**
 * Checks that the documents are true of the code: `node scripts/check-docs.ts [--write]`.
 *
 * Links and anchors resolve; paths of ours that a document or a comment names exist; every folder
 * under src/ has its place in docs/architecture.md; the tables that are written from the sources are what those
 * say (`--write` renews them), and no document names a code that the program does not have; every
 * source file opens with its header comment.
 */
import { existsSync, globSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, normalize, resolve } from 'node:path'

import { problemCodes } from '../src/model/problem.ts'
import { istioMetrics } from '../src/telemetry/istio-names.ts'
import { type Metric, metrics } from '../src/telemetry/metrics.ts'
import { findErrorCodes, renderErrorTable, renderProblemTable, type Source } from './error-codes.ts'
import { anchorsIn, linksIn, withoutCode } from './markdown.ts'

const root = resolve(import.meta.dirname, '..')
const errorsPath = 'docs/errors.md'
const architecturePath = 'docs/architecture.md'

/** Parts of documents that are written from the code, each between a mark with its name and an end. */
const generatedParts: readonly { path: string; name: string; render: () => string }[] = [
  { path: errorsPath, name: 'problem codes', render: () => renderProblemTable(problemCodes) },
  {
    path: errorsPath,
    name: 'error codes',
    render: () => renderErrorTable(findErrorCodes(program)),
  },
  ...(['Connections', 'Tunnels', 'Host', 'Process'] as const).map((group) => ({
    path: 'docs/metrics.md',
    name: `metrics of ${group.toLowerCase()}`,
    render: () => renderMetricTable(metrics.filter((metric) => metric.group === group)),
  })),
  {
    path: 'docs/metrics.md',
    name: "metrics with Istio's names",
    render: () => renderMetricTable(istioMetrics('').map((metric) => ({ ...metric, labels: [] }))),
  },
]

const documents = readAll(['*.md', 'docs/**/*.md', 'ansible/**/*.md', 'bench/**/*.md'])
const program = readAll(['src/**/*.{ts,tsx}'])
const code = [
  ...program,
  ...readAll(['test/**/*.ts', 'scripts/**/*.ts', 'bench/**/*.ts', '.oxlintrc.json', 'systemd/*']),
]
if (process.argv.includes('--write')) {
  for (const part of generatedParts) writeFileSync(join(root, part.path), renewed(part))
} else {
  const problems = [
    ...checkGeneratedParts(),
    ...checkCodesInDocuments(),
    ...checkLinks(),
    ...checkNamedPaths(),
    ...checkFolders(),
    ...checkHeaders(),
  ]
  for (const problem of problems) console.error(problem)
  process.exitCode = problems.length > 0 ? 1 : 0
}

/** The document with a part as the code has it now. */
function renewed({ path, name, render }: (typeof generatedParts)[number]): string {
  const text = readFileSync(join(root, path), 'utf8')
  const first = `<!-- ${name}: written by npm run docs -->`
  const last = `<!-- end of ${name} -->`
  const begin = text.indexOf(first)
  const end = text.indexOf(last)
  if (begin < 0 || end < begin)
    throw new Error(`${path} has lost its marks '${first}' and '${last}'; put them back`)
  return `${text.slice(0, begin)}${first}\n\n${render()}\n\n${text.slice(end)}`
}

function checkGeneratedParts(): string[] {
  return generatedParts
    .filter((part) => renewed(part) !== readFileSync(join(root, part.path), 'utf8'))
    .map(({ path, name }) => `${path}: ${name} are not what the sources say; run npm run docs`)
}

function renderMetricTable(table: readonly Metric[]): string {
  const rows = table.map(({ name, type, labels, help }) => {
    const cells = [type, labels.map((label) => `\`${label}\``).join(', '), help]
    return `| \`${name}\` | ${cells.join(' | ').replace('|  |', '| |')} |`
  })
  return ['| metric | type | labels | meaning |', '| --- | --- | --- | --- |', ...rows].join('\n')
}

function checkCodesInDocuments(): string[] {
  const known = new Set(findErrorCodes(program).map((entry) => entry.code))
  const found: string[] = []
  for (const { path, text } of documents)
    for (const match of text.matchAll(/\bHM_[A-Z0-9]+(?:_[A-Z0-9]+)+\b(?![_*…])/g))
      if (path !== errorsPath && !known.has(match[0]))
        found.push(`${place(path, text, match.index)}: no code under src/ raises ${match[0]}`)
  return found
}

function checkLinks(): string[] {
  const found: string[] = []
  for (const { path, text } of documents) {
    for (const { target, index } of linksIn(text)) {
      if (/^[a-z][a-z0-9+.-]*:/i.test(target)) continue
      const [file = '', anchor] = target.split('#')
      const wanted = file === '' ? path : normalize(join(dirname(path), decodeURIComponent(file)))
      if (wanted.startsWith('..') || file.startsWith('/') || !existsSync(join(root, wanted)))
        found.push(`${place(path, text, index)}: link to ${target}: no such file in the repository`)
      else if (anchor !== undefined && !hasAnchor(wanted, anchor))
        found.push(`${place(path, text, index)}: link to ${target}: ${wanted} has no such heading`)
    }
  }
  return found
}

/** Paths in running text and comments: `src/…`, `docs/…`, `scripts/…`, `test/…`, `bench/…`. */
function checkNamedPaths(): string[] {
  const found: string[] = []
  const seen = new Set<string>()
  const mentions =
    /(?<![\w./-])(?:src|docs|scripts|test|bench|systemd|ansible)\/[\w./-]*\w(#[\w-]+)?/g
  for (const { path, text } of [...documents, ...code]) {
    // In code only documents are looked up: tests and scripts speak of paths that they make up.
    const isDocument = path.endsWith('.md')
    for (const match of (isDocument ? withoutCode(text) : text).matchAll(mentions)) {
      const [file = '', anchor] = match[0].split('#')
      if (!isDocument && !/^docs\/.*\.md$/.test(file)) continue
      const next = text[match.index + match[0].length] ?? ''
      if ('*<{$…'.includes(next) && next !== '') continue
      // Once a file is enough, and a link to the same place is checkLinks' to report.
      if (text.slice(0, match.index).endsWith('](') || seen.has(`${path} ${match[0]}`)) continue
      seen.add(`${path} ${match[0]}`)
      if (!existsSync(join(root, file)))
        found.push(`${place(path, text, match.index)}: names ${file}, which does not exist`)
      else if (anchor !== undefined && file.endsWith('.md') && !hasAnchor(file, anchor))
        found.push(
          `${place(path, text, match.index)}: names ${match[0]}, but there is no such heading`,
        )
    }
  }
  return found
}

function checkFolders(): string[] {
  const text = tryRead(architecturePath)
  if (text === undefined)
    return [`${architecturePath} is missing; it names every folder under src/`]
  const folders = [...new Set(program.map(({ path }) => dirname(path).slice('src/'.length)))]
  return folders
    .filter(
      (folder) =>
        folder !== '' && !new RegExp(`(?<![\\w/-])(?:src/)?${folder}/?(?![\\w-])`).test(text),
    )
    .map(
      (folder) =>
        `${architecturePath}: does not name src/${folder}/ (by its path, with or without src/)`,
    )
}

function checkHeaders(): string[] {
  return code
    .filter(({ path, text }) => /\.tsx?$/.test(path) && !/^(?:#!.*\n)?\/\*\*?\s/.test(text))
    .map(
      ({ path }) =>
        `${path}: does not open with its header comment (/** …, 2-6 lines: what it owns)`,
    )
}

function hasAnchor(path: string, anchor: string): boolean {
  return path.endsWith('.md') ? anchorsIn(readFileSync(join(root, path), 'utf8')).has(anchor) : true
}

function place(path: string, text: string, index: number): string {
  return `${path}:${text.slice(0, index).split('\n').length}`
}

function readAll(patterns: readonly string[]): readonly Source[] {
  return globSync(patterns, { cwd: root })
    .filter((path) => statSync(join(root, path)).isFile())
    .toSorted()
    .map((path) => ({ path, text: readFileSync(join(root, path), 'utf8') }))
}

function tryRead(path: string): string | undefined {
  return existsSync(join(root, path)) ? readFileSync(join(root, path), 'utf8') : undefined
}
