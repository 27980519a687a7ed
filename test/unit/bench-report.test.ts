/** Claims about the benchmark's command line, its results files and its reports. */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { toRows } from '../../bench/measure/statistics.ts'
import { judge } from '../../bench/measure/verdicts.ts'
import { parseCommand } from '../../bench/options.ts'
import {
  BEGIN_MARKER,
  END_MARKER,
  insertReport,
  markdownReport,
} from '../../bench/report/markdown.ts'
import { ratioPicture } from '../../bench/report/svg.ts'
import { formatDuration, scenarioTable, verdictTable } from '../../bench/report/text.ts'
import { type Results, readResults, writeResults } from '../../bench/results.ts'
import { SCENARIO_NAMES } from '../../bench/scenario-names.ts'
import { SUBJECT_NAMES } from '../../bench/subject-names.ts'

const RESULTS: Results = {
  header: {
    environment: {
      date: '2026-11-21T09:36:35.909Z',
      kernel: '6.1.0',
      cpu: 'A processor',
      cpus: 2,
      memoryGb: 8,
      loadBefore: 0.1,
      runtime: 'Node 24',
      commit: 'abc1234',
      tls: 'TLS 1.3',
      topology: 'two hops',
      versions: { load: 'wrk 4', direct: 'no proxy', haproxy: 'HAProxy 2.6' },
    },
    rounds: 3,
    absent: { 'envoy-h2': 'envoy is not installed' },
    failures: [{ subject: 'nginx', scenario: 'bulk', message: 'hop A ended' }],
  },
  rows: toRows([
    { scenario: 'requests-64', subject: 'direct', reading: { requestsPerSecond: 150_000 } },
    {
      scenario: 'requests-64',
      subject: 'haproxy',
      reading: { requestsPerSecond: 27_000, p99: 4_000 },
    },
    {
      scenario: 'requests-64',
      subject: 'hostmesh-capture',
      reading: { requestsPerSecond: 43_200, p99: 8_000 },
    },
  ]),
}

function runOptions(...argv: string[]) {
  const command = parseCommand(argv)
  assert.equal(command.kind, 'run')
  return command.kind === 'run' ? command.options : assert.fail()
}

test('without arguments everything is measured in several rounds', () => {
  const options = runOptions()
  assert.deepEqual(options.subjects, SUBJECT_NAMES)
  assert.deepEqual(options.scenarios, SCENARIO_NAMES)
  assert.ok(options.rounds >= 3)
})

test('a quick run is HAProxy against hostmesh in two scenarios', () => {
  const options = runOptions('--quick', '--json', 'x.json')
  assert.deepEqual(options.scenarios, ['requests-64', 'mixed'])
  assert.ok(options.subjects.every((name) => name === 'haproxy' || name.startsWith('hostmesh')))
  assert.ok(options.subjects.includes('haproxy'))
  assert.equal(options.jsonFile, 'x.json')
})

test('names are taken in any order, and an unknown one is answered with those there are', () => {
  assert.deepEqual(runOptions('--only', 'nginx, direct').subjects, ['direct', 'nginx'])
  assert.throws(() => parseCommand(['--only', 'ngnix']), {
    code: 'HM_BENCH_USAGE',
    message: /"ngnix".*nginx/,
  })
  assert.throws(() => parseCommand(['--scenarios', '']), { code: 'HM_BENCH_USAGE' })
})

test('arguments that mean nothing are refused', () => {
  for (const argv of [
    ['--rounds', '0'],
    ['--rounds', '2.5'],
    ['--length', 'long'],
    ['--fast'],
    ['extra'],
    ['--into', 'doc.md'],
  ])
    assert.throws(() => parseCommand(argv), { code: 'HM_BENCH_USAGE' }, argv.join(' '))
})

test('results read back are the results written, the rows as a plain list', async (context) => {
  const directory = mkdtempSync(join(tmpdir(), 'hm-bench-report-'))
  context.after(() => rmSync(directory, { recursive: true }))
  const file = join(directory, 'new', 'run.json')
  await writeResults(file, RESULTS)
  assert.deepEqual(await readResults(file), RESULTS)
  await assert.rejects(readResults(join(directory, 'none.json')), { code: 'HM_BENCH_RESULTS' })
  await assert.rejects(readResults(join(directory, 'new', 'run.environment.json')), {
    code: 'HM_BENCH_RESULTS',
    message: /not a list/,
  })
})

test('the terminal shows a figure with its ratio, and none for the run without proxy', () => {
  const lines = scenarioTable('requests-64', RESULTS.rows).split('\n')
  const lineOf = (subject: string) => lines.find((line) => line.includes(subject)) ?? ''
  assert.match(lineOf('hostmesh-capture'), /43,200 +43,200 +43,200 +1\.60x$/)
  assert.match(lineOf('direct'), /150,000 +-$/)
  assert.equal(scenarioTable('bulk', RESULTS.rows), '')
})

test('the verdicts say which target is reached and which is short', () => {
  const table = verdictTable(judge(RESULTS.rows, ['hostmesh-capture']))
  assert.match(
    table,
    /64 connections: requests\/s +hostmesh-capture +1\.60x +must >= 1\.10x +PASS, aim/,
  )
  assert.match(table, /64 connections: p99 +hostmesh-capture +2\.00x +must <= 1\.00x +short/)
})

test('the document names machine, short targets, absent peers and failures', () => {
  const report = markdownReport(RESULTS, 'run.svg')
  assert.match(report, /A processor, 2 CPUs/)
  assert.match(report, /!\[.*\]\(run\.svg\)/)
  assert.match(report, /\| 64 connections: p99 \|.*\*\*short\*\*/)
  assert.match(report, /absent: envoy-h2: envoy is not installed/)
  assert.match(report, /failed: nginx in bulk: hop A ended/)
})

test('a report replaces what is between the markers and nothing else', () => {
  const before = `# Title\n${BEGIN_MARKER}\nold\n${END_MARKER}\nend\n`
  const once = insertReport(before, 'new')
  assert.equal(once, `# Title\n${BEGIN_MARKER}\n\nnew\n\n${END_MARKER}\nend\n`)
  assert.equal(insertReport(once ?? '', 'new'), once)
  assert.equal(insertReport('# Title\n', 'new'), undefined)
})

test('in the picture a longer bar is better, also where the figure should be small', () => {
  const picture = ratioPicture(RESULTS.rows)
  const titles = [...picture.matchAll(/<title>(\S+) ([\d.]+)<\/title>/g)].map(
    ([, subject, value]) => `${subject} ${value}`,
  )
  assert.deepEqual(titles, [
    'hostmesh-capture 1.60',
    'haproxy 1.00',
    'hostmesh-capture 0.50',
    'haproxy 1.00',
  ])
  assert.ok(picture.startsWith('<svg ') && picture.endsWith('</svg>\n'))
})

test('times are minutes and seconds', () => {
  assert.equal(formatDuration(0), '0:00')
  assert.equal(formatDuration(75.4), '1:15')
  assert.equal(formatDuration(-3), '0:00')
})
