/**
 * A rule for the sources of the data path that no test of behavior can hold: docs/performance.md, "Garbage". It reads
 * them line by line, which is enough for how they are formatted.
 */
import assert from 'node:assert/strict'
import { globSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'

const ROOT = join(import.meta.dirname, '../..')

/** `something.name = (…) =>`, `something[key] = async function`, `this.name = value =>`; class fields are none of these. */
const ASSIGNED_LITERAL =
  /^\s*[\w.[\]()]+(?:\.\w+|\])\s*=\s*(?:async\s+)?(?:\([^)]*\)\s*(?::\s*[^=]+)?=>|\w+\s*=>|function\b)/

/** Where it happens once a process, or in an ending that is not the usual one. */
const RARE = new Set(['src/dataplane/io/reset-socket.ts'])

test('no function literal is assigned to a property on the data path: V8 would make it old at birth', () => {
  const files = globSync(['src/dataplane/**/*.ts', 'src/lib/*.ts'], { cwd: ROOT })
  assert.ok(files.length > 40, `${files.length} files`)
  const found = files
    .filter((file) => !RARE.has(file))
    .flatMap((file) =>
      readFileSync(join(ROOT, file), 'utf8')
        .split('\n')
        .flatMap((line, at) => (ASSIGNED_LITERAL.test(line) ? [`${file}:${at + 1}: ${line}`] : [])),
    )
  assert.deepEqual(found, [], 'make it a const first, and assign that')
})

test('the rule knows the forms that it is about', () => {
  for (const line of [
    '  connection.abort = (flag, reason) => {',
    '      this.settle = (outcome) => {',
    '  fields[internals.callback] = (length: number): boolean => {',
    '  stream.onConfirmed = async () => {',
    '  state.onwrite = error => done(error)',
    '  handler.run = function () {',
  ])
    assert.match(line, ASSIGNED_LITERAL)
  for (const line of [
    '  const abort = (flag) => end(flag)',
    '  private readonly onWritten = (): void => {',
    '  connection.abort = abort',
    '    this.nextInstance = (this.nextInstance + 1) % instances.length',
  ])
    assert.doesNotMatch(line, ASSIGNED_LITERAL)
})
