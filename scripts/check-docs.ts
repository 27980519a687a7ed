/**
 * Checks that the documents are true of the code: `node scripts/check-docs.ts [--write]`.
 *
 * Links and anchors resolve; paths of ours that a document or a comment names exist; every folder
 * under src/ has its place in docs/architecture.md; the tables of docs/errors.md are what the sources
 * say (`--write` renews them), and no document names a code that the program does not have; every
 * source file opens with its header comment.
 */
import { existsSync, globSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, normalize, resolve } from 'node:path'

import { problemCodes } from '../src/model/problem.ts'
import { findErrorCodes, renderErrorTable, renderProblemTable, type Source } from './error-codes.ts'
import { anchorsIn, linksIn, withoutCode } from './markdown.ts'

const root = resolve(import.meta.dirname, '..')
const errorsPath = 'docs/errors.md'
const architecturePath = 'docs/architecture.md'
const tableBegin = '<!-- error codes: written by npm run docs -->'
const tableEnd = '<!-- end of error codes -->'
const problemsBegin = '<!-- problem codes: written by npm run docs -->'
const problemsEnd = '<!-- end of problem codes -->'
const errorsIntroduction = `# Error codes

Every failure that a person, a log line or a counter sees has one of these codes. A code never
changes its meaning; the wording may. \`…\` stands for what is filled in. Generated from the sources
by \`npm run docs\`; text outside of the two marks is kept.
`

const documents = readAll(['*.md', 'docs/**/*.md', 'ansible/**/*.md', 'bench/**/*.md'])
const program = readAll(['src/**/*.ts'])
const code = [
  ...program,
  ...readAll(['test/**/*.ts', 'scripts/**/*.ts', 'bench/**/*.ts', '.oxlintrc.json', 'systemd/*']),
]
if (process.argv.includes('--write')) {
  writeErrorTable()
} else {
  const problems = [
    ...checkErrorTable(),
    ...checkCodesInDocuments(),
    ...checkLinks(),
    ...checkNamedPaths(),
    ...checkFolders(),
    ...checkHeaders(),
  ]
  for (const problem of problems) console.error(problem)
  process.exitCode = problems.length > 0 ? 1 : 0
}

function generatedProblems(): string {
  return `${problemsBegin}\n\n${renderProblemTable(problemCodes)}\n\n${problemsEnd}`
}

function generatedTable(): string {
  return `${tableBegin}\n\n${renderErrorTable(findErrorCodes(program))}\n\n${tableEnd}`
}

/** The document cut at two marks: what is before, between (with the marks), and after. */
function cutErrorDocument(first = tableBegin, last = tableEnd): readonly [string, string, string] {
  const text = tryRead(errorsPath) ?? `${errorsIntroduction}\n${tableBegin}\n${tableEnd}\n`
  const begin = text.indexOf(first)
  const end = text.indexOf(last) + last.length
  if (begin < 0 || end < begin)
    throw new Error(`${errorsPath} has lost its marks '${first}' and '${last}'; put them back`)
  return [text.slice(0, begin), text.slice(begin, end), text.slice(end)]
}

function writeErrorTable(): void {
  const [before, , after] = cutErrorDocument()
  writeFileSync(join(root, errorsPath), before + generatedTable() + after)
  const [head, , tail] = cutErrorDocument(problemsBegin, problemsEnd)
  writeFileSync(join(root, errorsPath), head + generatedProblems() + tail)
}

function checkErrorTable(): string[] {
  const [, problems] = cutErrorDocument(problemsBegin, problemsEnd)
  if (problems !== generatedProblems())
    return [
      `${errorsPath}: the problem codes are not those of src/model/problem.ts; run npm run docs`,
    ]
  const [, table] = cutErrorDocument()
  if (table === generatedTable()) return []
  const missing = findErrorCodes(program)
    .map((entry) => entry.code)
    .filter((entry) => !table.includes(`\`${entry}\``))
  const names = missing.length > 0 ? `; not listed: ${missing.join(', ')}` : ''
  return [`${errorsPath} is not what the sources say${names}; run npm run docs`]
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
    .filter(({ path, text }) => path.endsWith('.ts') && !/^(?:#!.*\n)?\/\*\*?\s/.test(text))
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
