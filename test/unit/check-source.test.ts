/**
 * What scripts/check-source.ts finds in a tree, and that it finds nothing in a sound one.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempDisposableSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { test } from 'node:test'

const script = resolve(import.meta.dirname, '../../scripts/check-source.ts')

/** A sound tree: a pure file, one that writes by the one way, and one that uses both. */
const SOUND = {
  'src/model/sum.ts': `/** Sums. Pure. */\nexport function sum(a: number, b: number): number {\n  return a + b\n}\n`,
  'src/lib/atomic-file.ts': `/** Writes. */\nimport { writeFileSync } from 'node:fs'\n\nexport const write = (path: string): void => writeFileSync(path, '')\n`,
  'src/main.ts': `/** Starts. */\nimport { write } from './lib/atomic-file.ts'\nimport { sum } from './model/sum.ts'\n\nwrite(String(sum(1, 2)))\n`,
  '.oxlintrc.json': `{"overrides": [{"files": ["src/model/**"], "rules": {}}]}`,
}

/** The lines that are said of the tree with these files changed. */
function check(changed: Readonly<Record<string, string>> = {}): string[] {
  using folder = mkdtempDisposableSync(join(tmpdir(), 'hostmesh-check-source-'))
  const root = folder.path
  for (const [path, text] of Object.entries({ ...SOUND, ...changed })) {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  const { stdout, stderr, status } = spawnSync(process.execPath, [script, root], {
    encoding: 'utf8',
  })
  assert.equal(stdout, '')
  assert.equal(status === 0, stderr === '')
  return stderr.split('\n').filter((line) => line !== '')
}

test('nothing is said of a sound tree', () => {
  assert.deepEqual(check(), [])
})

test('a file that calls itself pure is followed through what it imports to run', () => {
  const found = check({
    'src/model/sum.ts': `/** Sums. Pure. */\nimport { now } from './now.ts'\n\nexport const sum = (a: number, b: number): number => a + b + now()\n`,
    'src/model/now.ts': `/** The time. */\nexport const now = (): number => Date.now()\n`,
  })
  assert.deepEqual(found, [
    'src/model/sum.ts: says that it is pure, and is not: src/model/now.ts says Date.now(',
  ])
})

test('types and what only computes leave a file pure', () => {
  const found = check({
    'src/model/sum.ts': `/** Sums. Pure. */\nimport { isIP } from 'node:net'\nimport type { Clock } from './clock.ts'\n\nexport const sum = (a: number, b: number, _clock?: Clock): number => a + b + isIP('')\n`,
    'src/model/clock.ts': `/** A clock. */\nexport interface Clock {\n  readonly now: number\n}\n\nconsole.log(Date.now())\n`,
  })
  assert.deepEqual(found, [])
})

test('an export without an importer is named', () => {
  const found = check({ 'src/lib/more.ts': `/** More. */\nexport const more = 1\n` })
  assert.deepEqual(found, ['src/lib/more.ts: exports more, which no other file imports'])
})

test('an export in a list is one, and hides no other import', () => {
  const found = check({
    'src/lib/more.ts': `/** More. */\nimport { sum } from '../model/sum.ts'\n\nexport class More {}\nexport { sum as add, type Sum }\nexport { write } from './atomic-file.ts'\n`,
    'src/main.ts': `/** Starts. */\nimport { More, write } from './lib/more.ts'\n\nwrite(String(More))\n`,
  })
  assert.deepEqual(
    found,
    ['add', 'Sum'].map((name) => `src/lib/more.ts: exports ${name}, which no other file imports`),
  )
})

for (const [path, code, found] of [
  ['src/main.ts', `writeFileSync('a', 'b')`, 'a file is written by src/lib/atomic-file.ts'],
  ['src/main.ts', `import koffi from 'koffi'`, 'native code is called through src/lib/native.ts'],
  ['src/main.ts', `import 'node:child_process'`, 'what starts processes is listed here'],
  [
    'src/main.ts',
    `console.log(socket._handle)`,
    "Node's undocumented fields are read by src/lib/node-internals.ts",
  ],
  ['src/dataplane/a.ts', `import 'node:fs'`, 'a worker asks no disk, no DNS and no other program'],
] as const)
  test(`named outside of its files: ${code}`, () => {
    const [line = '', ...others] = check({ [path]: `${SOUND['src/main.ts']}\n${code}\n` })
    assert.deepEqual(others, [])
    assert.ok(line.startsWith(`${path}: ${found}, and here is `), line)
  })

test('a file of the program has 500 lines at most', () => {
  const long = (lines: number): string => `/** Long. */\n${'\n'.repeat(lines - 1)}`
  const [line = '', ...others] = check({
    'src/lib/longest.ts': long(500),
    'src/lib/longer.ts': long(501),
    'test/unit/longer.test.ts': long(501),
  })
  assert.deepEqual(others, [])
  assert.ok(line.startsWith('src/lib/longer.ts: has 501 lines; the limit is 500'), line)
})

test('a guard of lint for what is not there is named', () => {
  const found = check({
    '.oxlintrc.json': `{"overrides": [{"files": ["src/gone.ts"], "rules": {"no-restricted-imports": ["error", {"patterns": [{"group": ["../**", "!../model/moved.ts"]}]}]}}]}`,
  })
  assert.deepEqual(found, [
    ".oxlintrc.json: 'src/gone.ts' fits nothing that exists",
    ".oxlintrc.json: '!../model/moved.ts' fits nothing that exists",
  ])
})
