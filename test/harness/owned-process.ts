/**
 * Processes that a test starts: each has an owner, a bounded record of what it printed, and an end.
 *
 * Whatever happens to the test process, short of SIGKILL, none of them outlives it; what SIGKILL leaves
 * behind is found by the namespace it runs in (network.ts).
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'

import { patient, within } from './eventually.ts'

/** How a process ended: one of the two is set. */
export interface Exit {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

/** What a finished command said. */
export interface CommandResult {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** How a process is started. */
export interface ProcessOptions {
  /** For error messages. */
  readonly name: string
  readonly env?: Readonly<Record<string, string>>
  readonly cwd?: string
  /** Opens a channel for messages, as child_process.fork does. */
  readonly ipc?: boolean
  /** Takes its standard output as it is; only its standard error is recorded then. */
  readonly onOutput?: (chunk: Buffer) => void
}

/** Longest record kept of what one process printed; the oldest part is dropped. */
const OUTPUT_LIMIT_CHARS = 8 * 1024 * 1024

/** A process has this long to end after SIGTERM before {@link OwnedProcess.stop} kills it. */
const STOP_GRACE_MS = 10_000

const running = new Set<ChildProcess>()

/** A running program. Disposing it stops it. */
export class OwnedProcess implements AsyncDisposable {
  readonly name: string
  readonly pid: number
  readonly child: ChildProcess
  /** Resolves when it has ended; never rejects. */
  readonly exited: Promise<Exit>
  private text = ''

  private constructor(child: ChildProcess, { name, onOutput }: ProcessOptions) {
    this.child = child
    this.name = name
    this.pid = child.pid ?? 0
    const collect = (chunk: Buffer): void => {
      this.text = (this.text + chunk.toString('utf8')).slice(-OUTPUT_LIMIT_CHARS)
    }
    child.stdout?.on('data', onOutput ?? collect)
    child.stderr?.on('data', collect)
    running.add(child)
    this.exited = new Promise((resolve) => {
      child.once('exit', (code, signal) => {
        running.delete(child)
        resolve({ code, signal })
      })
    })
  }

  /**
   * Starts `argv`, found on the PATH.
   * @throws when there is no such program.
   */
  static async start(argv: readonly string[], options: ProcessOptions): Promise<OwnedProcess> {
    const [command = '', ...rest] = argv
    const child = spawn(command, rest, {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdio: ['ignore', 'pipe', 'pipe', ...(options.ipc === true ? (['ipc'] as const) : [])],
      serialization: 'advanced',
    })
    const owned = new OwnedProcess(child, options)
    await new Promise<void>((resolve, reject) => {
      child.once('spawn', resolve)
      child.once('error', (cause) =>
        reject(new Error(`Cannot start ${options.name}: ${argv.join(' ')}`, { cause })),
      )
    })
    return owned
  }

  /** Everything it printed on both outputs, up to a limit. */
  get output(): string {
    return this.text
  }

  get hasExited(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null
  }

  /** Sends a signal; false when it has ended already. */
  signal(signal: NodeJS.Signals): boolean {
    return !this.hasExited && this.child.kill(signal)
  }

  /** Ends it with SIGKILL and waits until it is gone. */
  async kill(): Promise<Exit> {
    this.signal('SIGKILL')
    return within(5_000, `The end of ${this.name} after SIGKILL`, this.exited)
  }

  /**
   * Ends it with SIGTERM and waits.
   * @throws when it takes longer than its grace; it is killed then.
   */
  async stop(graceMs: number = STOP_GRACE_MS): Promise<Exit> {
    this.signal('SIGTERM')
    try {
      return await within(graceMs, `The end of ${this.name} after SIGTERM`, this.exited)
    } catch (error) {
      await this.kill()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.hasExited) await this.stop()
  }
}

/** Runs `argv` to its end and returns what it said, whatever its exit code; killed after `limitMs`. */
export function runCommand(
  argv: readonly string[],
  options: { readonly env?: Readonly<Record<string, string>>; readonly limitMs?: number } = {},
): Promise<CommandResult> {
  const [command = '', ...rest] = argv
  return new Promise((resolve, reject) => {
    execFile(
      command,
      rest,
      {
        env: { ...process.env, ...options.env },
        timeout: patient(options.limitMs ?? 30_000),
        killSignal: 'SIGKILL',
        maxBuffer: 64 * 1024 * 1024,
      },
      (error, stdout, stderr) => {
        if (error === null) resolve({ code: 0, stdout, stderr })
        else if (typeof error.code === 'number') resolve({ code: error.code, stdout, stderr })
        else reject(new Error(`Cannot run ${argv.join(' ')}: ${error.message}`, { cause: error }))
      },
    )
  })
}

/** Runs `argv` and returns its standard output. @throws with what it said when it fails. */
export async function mustRun(
  argv: readonly string[],
  options: { readonly limitMs?: number } = {},
): Promise<string> {
  const result = await runCommand(argv, options)
  if (result.code !== 0)
    throw new Error(
      `${argv.join(' ')} failed with ${result.code}: ${result.stderr.trim() || result.stdout.trim()}`,
    )
  return result.stdout
}

const lastWords: (() => void)[] = []

/** Registers synchronous clean-up for an early end of this process; returns how to call it off. */
export function onEarlyExit(cleanUp: () => void): () => void {
  lastWords.push(cleanUp)
  return () => {
    const at = lastWords.indexOf(cleanUp)
    if (at >= 0) lastWords.splice(at, 1)
  }
}

process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL')
  for (const cleanUp of lastWords.toReversed()) cleanUp()
})
for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  process.once(signal, () => {
    process.exit(code)
  })
}
