/**
 * The suite's own runner cannot be fooled: each way for a test file to look green without being so.
 *
 * Small test files are written to a folder and run for real, in processes, as `npm test` does.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, test } from 'node:test'

import { runTestFile } from '../../scripts/run-test-file.ts'

const folder = mkdtempSync(join(tmpdir(), 'hostmesh-run-test-file-'))
after(() => rmSync(folder, { recursive: true }))
let count = 0

/** Runs `source` as a test file; returns its figures and the text of its failures. */
async function run(source: string, limitMs = 20_000): ReturnType<typeof runTestFile> {
  count += 1
  const path = join(folder, `sample-${count}.test.mjs`)
  writeFileSync(path, `import { describe, test } from 'node:test'\n${source}`)
  return await runTestFile(path, limitMs)
}

describe('a test file', { concurrency: 2 }, () => {
  test('that passes is counted test by test, with subtests, without suites', async () => {
    const result = await run(
      `describe('suite', () => { test('a', () => {}); test('b', async (t) => { await t.test('c', () => {}) }) })`,
    )
    assert.deepEqual([result.passed, result.failures, result.skipped], [3, [], []])
  })

  test('with a failed test names it by its path and says what was thrown', async () => {
    const result = await run(
      `describe('suite', () => { test('good', () => {}); test('bad', () => { throw new Error('it broke') }) })`,
    )
    assert.equal(result.passed, 1)
    assert.equal(result.failures.length, 1)
    assert.equal(result.failures[0]?.name, 'suite > bad')
    assert.match(result.failures[0]?.reason ?? '', /it broke/)
  })

  test('with skipped and todo tests reports both as skipped, even a todo that passes', async () => {
    const result = await run(
      `test('a', { skip: 'not here' }, () => {}); test('b', { todo: true }, () => {}); test('c', { todo: true }, () => { throw new Error('x') })`,
    )
    assert.deepEqual(result.skipped, ['a', 'b', 'c'])
    assert.deepEqual([result.passed, result.failures], [0, []])
  })

  test('without a test fails', async () => {
    const result = await run(`console.log('nothing here')`)
    assert.equal(result.failures.length, 1)
    assert.match(result.failures[0]?.reason ?? '', /without reporting/)
    assert.match(result.output, /nothing here/)
  })

  test('that calls process.exit(0) before its other tests fails', async () => {
    const result = await run(
      `test('a', () => process.exit(0)); test('b', () => { throw new Error() })`,
    )
    assert.match(result.failures[0]?.reason ?? '', /process\.exit/)
  })

  test('that breaks after its tests have passed fails', async () => {
    const result = await run(
      `test('a', () => { setTimeout(() => { throw new Error('too late') }, 20) })`,
    )
    assert.equal(result.passed, 1)
    assert.match(result.failures[0]?.reason ?? '', /although no test failed/)
    assert.match(result.notes.join('\n'), /too late/)
  })

  test('with a timer left open fails at its limit, and not for a test', async () => {
    const result = await run(`test('a', () => { setInterval(() => {}, 1000) })`, 1_500)
    assert.equal(result.passed, 1)
    assert.match(result.failures[0]?.reason ?? '', /still open/)
  })

  test('that hangs is ended at its limit, and the test that hung is named', async () => {
    const result = await run(
      `test('first', () => {}); test('never ends', () => new Promise(() => { setInterval(() => {}, 1000) }))`,
      1_500,
    )
    assert.match(
      result.failures[0]?.reason ?? '',
      /Not done after 1\.5 s; still running: never ends/,
    )
  })

  test('that leaves a process behind fails, and the process is ended', async () => {
    const pidPath = join(folder, 'leftover.pid')
    const result = await run(
      `import { spawn } from 'node:child_process'; import { writeFileSync } from 'node:fs'
       test('a', () => { const child = spawn('sleep', ['60'], { stdio: 'ignore' }); child.unref()
         writeFileSync(${JSON.stringify(pidPath)}, String(child.pid)) })`,
    )
    assert.match(result.failures[0]?.reason ?? '', /Left processes running: sleep/)
    const stat = tryRead(`/proc/${readFileSync(pidPath, 'utf8')}/stat`)
    assert.ok(stat === undefined || / [ZX] /.test(stat), `still there: ${stat}`)
  })
})

function tryRead(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch {
    return undefined
  }
}
