/**
 * `--watch`: on a terminal the answer replaces the one before; elsewhere one document follows the other.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { describeError } from '../lib/errors.ts'
import { type Answer, formatAnswer, notesOf, type OutputFormat } from './answer.ts'

/** Where answers go. */
export interface Screen {
  readonly isTerminal: boolean
  /** Undefined where it is no terminal. */
  readonly columns: number | undefined
  readonly rows: number | undefined
  /** To standard output. */
  write(text: string): void
  /** A line for standard error. */
  warn(line: string): void
  /** Calls back when the size has changed, until `signal` aborts. */
  onResize(listen: () => void, signal: AbortSignal): void
  /** Aborts when the user ends it. */
  readonly ended: AbortSignal
}

/** How {@link watch} repeats. */
export interface WatchOptions {
  readonly format: OutputFormat
  readonly intervalMs: number
  readonly screen: Screen
  /** Waits; returns early when the signal aborts. */
  readonly wait?: (ms: number, signal: AbortSignal) => Promise<void>
}

/** The other screen of a terminal, without cursor and with long lines cut: what was there before comes back afterwards. */
const ENTER = '\u001B[?1049h\u001B[?25l\u001B[?7l'
const LEAVE = '\u001B[?7h\u001B[?25h\u001B[?1049l'
const HOME = '\u001B[H'
const CLEAR_LINE = '\u001B[K'
const CLEAR_REST = '\u001B[J'

/**
 * Asks and shows until the screen's user ends it; returns the last answer. A failure after the first answer is said, and
 * the next answer is waited for.
 * @throws what the first `ask` throws
 */
export async function watch(
  ask: () => Promise<Answer>,
  options: WatchOptions,
): Promise<Answer | undefined> {
  const { format, screen } = options
  const isDrawn = screen.isTerminal && (format === 'table' || format === 'wide')
  return isDrawn ? draw(ask, options) : list(ask, options)
}

async function draw(
  ask: () => Promise<Answer>,
  { format, intervalMs, screen, wait = pause }: WatchOptions,
): Promise<Answer> {
  let answer = await ask()
  let trouble: string | undefined
  const paint = async (): Promise<void> => {
    const text = await formatAnswer(answer, format, screen.columns)
    const lines = [
      ...(trouble === undefined ? [] : [`hostmesh: ${trouble}`]),
      ...(text === '' ? [] : text.split('\n')),
      ...notesOf(answer, format),
    ]
    const room = Math.max(1, (screen.rows ?? lines.length + 1) - 1)
    const shown =
      lines.length > room
        ? [...lines.slice(0, room - 1), `… ${lines.length - room + 1} more lines`]
        : lines
    screen.write(HOME + shown.map((line) => `${line}${CLEAR_LINE}\r\n`).join('') + CLEAR_REST)
  }
  screen.write(ENTER)
  try {
    screen.onResize(() => void paint(), screen.ended)
    while (!screen.ended.aborted) {
      await paint()
      await wait(intervalMs, screen.ended)
      if (screen.ended.aborted) break
      try {
        answer = await ask()
        trouble = undefined
      } catch (error) {
        trouble = describeError(error)
      }
    }
  } finally {
    screen.write(LEAVE)
  }
  screen.write(`${await formatAnswer(answer, format, screen.columns)}\n`)
  return answer
}

async function list(
  ask: () => Promise<Answer>,
  { format, intervalMs, screen, wait = pause }: WatchOptions,
): Promise<Answer | undefined> {
  let last: Answer | undefined
  let said: string | undefined
  const tell = (lines: readonly string[]): void => {
    const text = lines.join('\n')
    if (text !== said) for (const line of lines) screen.warn(line)
    said = text
  }
  while (!screen.ended.aborted) {
    try {
      const answer = await ask()
      const text = await formatAnswer(answer, format, screen.columns)
      const separator = format === 'yaml' ? '---\n' : '\n'
      const isFirst = last === undefined
      last = answer
      if (text !== '') screen.write(`${isFirst || format === 'json' ? '' : separator}${text}\n`)
      tell(notesOf(answer, format))
    } catch (error) {
      if (last === undefined) throw error
      tell([`hostmesh: ${describeError(error)}`])
    }
    await wait(intervalMs, screen.ended)
  }
  return last
}

/** The terminal of this process, or what its output goes to. */
export function terminalScreen(): Screen {
  const ending = new AbortController()
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.once(signal, () => ending.abort())
  const { stdout } = process
  return {
    isTerminal: stdout.isTTY,
    get columns() {
      return stdout.columns
    },
    get rows() {
      return stdout.rows
    },
    write: (text) => void stdout.write(text),
    warn: (line) => void process.stderr.write(`${line}\n`),
    onResize: (listen, signal) => {
      stdout.on('resize', listen)
      signal.addEventListener('abort', () => stdout.off('resize', listen))
    },
    ended: ending.signal,
  }
}

async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => undefined)
}
