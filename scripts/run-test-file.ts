/**
 * Runs one test file in a process of its own and says how it ended.
 *
 * A file fails not only by a failed test: it must also end by itself within its limit (a socket or
 * timer left open keeps it alive), run at least one test, exit with 0 and leave no process behind.
 * Each of those is counted as one failed test, so that no defect can hide behind a good count.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

import type { ReportLine } from './test-reporter.ts'

/** One thing that went wrong in a file: a failed test, or a defect of the file as a whole. */
export interface Failure {
  readonly name: string
  readonly reason: string
}

/** How one test file ended. */
export interface FileResult {
  readonly passed: number
  readonly skipped: readonly string[]
  readonly failures: readonly Failure[]
  /** Warnings of the test runner, such as work that went on after its test had ended. */
  readonly notes: readonly string[]
  /** What the file printed, cut to its last part. */
  readonly output: string
  readonly durationMs: number
}

const reporterPath = join(import.meta.dirname, 'test-reporter.ts')
/** How much of a failed file's output is worth reading. */
const outputLimitChars = 64 * 1024
/** After SIGTERM a test file has this long to remove its namespaces and rules. */
const termGraceMs = 5_000
/** Processes that end on their own right after the file are not leaks. */
const leftoverGraceMs = 2_000

const running = new Set<ChildProcess>()

/**
 * Runs `file`; never rejects for what the file does. `limitMs` is its whole time, start to exit;
 * `environment` is added to ours.
 */
export async function runTestFile(
  file: string,
  limitMs: number,
  environment: Readonly<Record<string, string>> = {},
): Promise<FileResult> {
  const startedAt = performance.now()
  const folder = await mkdtemp(join(tmpdir(), 'hostmesh-test-'))
  try {
    const reportPath = join(folder, 'report.jsonl')
    const ended = await runProcess(file, reportPath, { limitMs, environment })
    const lines = parseReport(await readFile(reportPath, 'utf8').catch(() => ''))
    const failures = lines.filter((line) => line.kind === 'fail')
    const defect = describeDefect(ended, lines, limitMs)
    const found: Failure[] = failures.map(({ name, reason }) => ({ name, reason }))
    if (defect !== undefined) found.push({ name: 'the file as a whole', reason: defect })
    return {
      passed: lines.filter((line) => line.kind === 'pass').length,
      skipped: lines.flatMap((line) => (line.kind === 'skip' ? [line.name] : [])),
      failures: found,
      notes: lines.flatMap((line) => (line.kind === 'note' ? [line.text] : [])),
      output: ended.output,
      durationMs: performance.now() - startedAt,
    }
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Stops every test file still running, as on Ctrl-C, and waits for them to clean up after themselves. */
export async function stopTestFiles(): Promise<void> {
  await Promise.all([...running].map(stop))
}

interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly timedOut: boolean
  readonly leftovers: readonly string[]
  readonly output: string
}

async function runProcess(
  file: string,
  reportPath: string,
  options: {
    readonly limitMs: number
    readonly environment: Readonly<Record<string, string>>
  },
): Promise<Ended> {
  const child = spawn(
    process.execPath,
    [
      '--disable-warning=ExperimentalWarning',
      `--test-reporter=${reporterPath}`,
      `--test-reporter-destination=${reportPath}`,
      file,
    ],
    {
      // A group of its own, so that the limit and the leak check reach the processes it started.
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      // Set when we run under `node --test` ourselves; it would silence the reporter.
      env: { ...process.env, ...options.environment, NODE_TEST_CONTEXT: undefined },
    },
  )
  running.add(child)
  let output = ''
  const collect = (chunk: Buffer): void => {
    output = (output + chunk.toString('utf8')).slice(-outputLimitChars)
  }
  child.stdout.on('data', collect)
  child.stderr.on('data', collect)

  let timedOut = false
  const timer = setTimeout(() => {
    timedOut = true
    void stop(child)
  }, options.limitMs)
  // 'exit', not 'close': a daemon that the file left behind would hold the pipes open for ever.
  const [code, signal] = await new Promise<[number | null, NodeJS.Signals | null]>(
    (resolve, reject) => {
      child.once('exit', (...how) => resolve(how))
      child.once('error', reject)
    },
  )
  clearTimeout(timer)
  const leftovers = await endGroup(child.pid ?? 0)
  running.delete(child)
  child.stdout.destroy()
  child.stderr.destroy()
  return { code, signal, timedOut, leftovers, output }
}

async function stop(child: ChildProcess): Promise<void> {
  child.kill('SIGTERM')
  for (let waitedMs = 0; waitedMs < termGraceMs && !hasExited(child); waitedMs += 50)
    await sleep(50)
  if (!hasExited(child)) signalGroup(child.pid ?? 0, 'SIGKILL')
}

function hasExited(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null
}

/** Waits for the rest of a group to end, kills what does not, and returns what had to be killed. */
async function endGroup(group: number): Promise<readonly string[]> {
  let members = await groupMembers(group)
  for (let waitedMs = 0; waitedMs < leftoverGraceMs && members.length > 0; waitedMs += 50) {
    await sleep(50)
    members = await groupMembers(group)
  }
  if (members.length > 0) signalGroup(group, 'SIGKILL')
  return members
}

function signalGroup(group: number, signal: NodeJS.Signals | 0): boolean {
  try {
    process.kill(-group, signal)
    return true
  } catch {
    return false
  }
}

/** Command names of the living processes of a group. Zombies do not count: PID 1 may be slow to reap. */
async function groupMembers(group: number): Promise<readonly string[]> {
  if (group === 0 || !signalGroup(group, 0)) return []
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name))
  const found: string[] = []
  for (const pid of pids) {
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8').catch(() => '')
    const match = /^\d+ \((.*)\) (\S) \d+ (\d+) /s.exec(stat)
    if (match !== null && Number(match[3]) === group && !'ZX'.includes(match[2] ?? 'Z'))
      found.push(`${match[1]} (pid ${pid})`)
  }
  return found
}

function parseReport(text: string): readonly ReportLine[] {
  // A killed process may have written half of its last line.
  const complete = text.slice(0, text.lastIndexOf('\n') + 1)
  return complete
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as ReportLine)
}

function describeDefect(
  ended: Ended,
  lines: readonly ReportLine[],
  limitMs: number,
): string | undefined {
  const seconds = limitMs / 1000
  if (ended.timedOut) {
    const open = namesStillRunning(lines)
    return open.length > 0
      ? `Not done after ${seconds} s; still running: ${open.join(', ')}`
      : `All tests done, but the process did not end within ${seconds} s: a socket, timer or child is still open`
  }
  if (ended.leftovers.length > 0) return `Left processes running: ${ended.leftovers.join(', ')}`
  if (ended.signal !== null) return `Killed by ${ended.signal}`
  if (!lines.some((line) => line.kind === 'summary'))
    return `Ended with code ${ended.code} without reporting: it holds no test, crashed, or called process.exit()`
  const counted = lines.filter(
    (line) => line.kind === 'pass' || line.kind === 'fail' || line.kind === 'skip',
  )
  if (counted.length === 0) return 'Ran no test'
  if (ended.code !== 0 && !lines.some((line) => line.kind === 'fail'))
    return `Exited with code ${ended.code} although no test failed: something broke outside of the tests`
  return undefined
}

function namesStillRunning(lines: readonly ReportLine[]): readonly string[] {
  const open = new Map<string, number>()
  for (const line of lines) {
    if (line.kind === 'begin') open.set(line.name, (open.get(line.name) ?? 0) + 1)
    if (line.kind === 'end') open.set(line.name, (open.get(line.name) ?? 0) - 1)
  }
  return [...open].filter(([, count]) => count > 0).map(([name]) => name)
}
