/**
 * Starts, watches and ends the processes of a run. Each gets its own process group, so that Ctrl-C in the
 * terminal reaches only the benchmark, which then ends them in order; each logs to a file of its own.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { closeSync, openSync, readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { MeshError } from '../../src/lib/errors.ts'

/** What to start. */
export interface ProcessSpec {
  readonly name: string
  readonly argv: readonly string[]
  /** Receives standard output and standard error; added to when it exists. */
  readonly logFile: string
}

/** How long a process may take to end after SIGTERM before it is killed. */
const STOP_DEADLINE_MS = 5_000

/** Lines of a log that are shown when its process fails. */
const TAIL_LINES = 12

/** A process that goes on until it is stopped. */
export class RunningProcess {
  readonly name: string
  readonly pid: number
  /** Resolves when the process has ended, with a few words on how. */
  readonly ended: Promise<string>
  readonly #logFile: string
  #end: string | undefined

  constructor(spec: ProcessSpec) {
    const [command, ...args] = spec.argv
    const log = openSync(spec.logFile, 'a')
    let child: ChildProcess
    try {
      child = spawn(command ?? '', args, { detached: true, stdio: ['ignore', log, log] })
    } finally {
      closeSync(log)
    }
    this.name = spec.name
    this.#logFile = spec.logFile
    this.ended = new Promise((resolve) => {
      const finish = (how: string): void => {
        this.#end ??= how
        resolve(how)
      }
      child.once('error', (error) => finish(error.message))
      child.once('exit', (code, signal) => finish(signal ?? `exit code ${code}`))
    })
    // Without a pid the spawn itself failed; 'error' above says why.
    this.pid = child.pid ?? -1
  }

  /** How the process ended; undefined while it runs. */
  get end(): string | undefined {
    return this.#end
  }

  /** All it has written so far. */
  output(): string {
    return readFileSync(this.#logFile, 'utf8')
  }

  /** The last lines it has written. */
  outputTail(): string {
    return this.output().trimEnd().split('\n').slice(-TAIL_LINES).join('\n')
  }

  /** Sends a signal to the process alone; nothing happens when it has ended. */
  signal(signal: NodeJS.Signals): void {
    if (this.#end === undefined && this.pid > 0) process.kill(this.pid, signal)
  }

  /** Sends `signal`, and after five seconds SIGKILL to the whole group. Resolves when it has ended. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    this.signal(signal)
    const timer = setTimeout(() => {
      if (this.#end === undefined && this.pid > 0) process.kill(-this.pid, 'SIGKILL')
    }, STOP_DEADLINE_MS)
    await this.ended
    clearTimeout(timer)
  }
}

const execute = promisify(execFile)

/** Runs a command to its end and gives its standard output. Throws HM_BENCH_COMMAND with its complaint. */
export async function run(argv: readonly string[], timeoutMs = 20_000): Promise<string> {
  const [command, ...args] = argv
  try {
    const { stdout } = await execute(command ?? '', args, {
      timeout: timeoutMs,
      maxBuffer: 16 * 1024 * 1024,
    })
    return stdout
  } catch (error) {
    const complaint = error instanceof Error && 'stderr' in error ? String(error.stderr).trim() : ''
    throw new MeshError(
      'HM_BENCH_COMMAND',
      `Command failed: ${argv.join(' ')}${complaint === '' ? '' : `\n${complaint}`}`,
      { cause: complaint === '' ? error : undefined },
    )
  }
}

/** How long {@link waitFor} goes on asking. */
export interface Patience {
  readonly deadlineMs: number
  /** Ends the wait with its reason. */
  readonly signal: AbortSignal
}

/**
 * Asks `attempt` again and again until it answers something other than undefined. Throws
 * HM_BENCH_DEADLINE naming `what` when the deadline is over; what attempt() throws ends the wait at once.
 */
export async function waitFor<T>(
  what: string,
  patience: Patience,
  attempt: () => Promise<T | undefined> | T | undefined,
): Promise<T> {
  const giveUpAt = performance.now() + patience.deadlineMs
  for (;;) {
    patience.signal.throwIfAborted()
    const answer = await attempt()
    if (answer !== undefined) return answer
    if (performance.now() >= giveUpAt)
      throw new MeshError(
        'HM_BENCH_DEADLINE',
        `Waited ${patience.deadlineMs / 1000} s in vain: ${what}`,
      )
    await delay(20)
  }
}
