/**
 * Commands that show a document: the formats in which it is printed, and repeated with `--watch`. All reading commands use
 * this, so that `-o`, `--watch` and exit codes mean the same everywhere.
 */
import { Command, InvalidArgumentError, Option } from 'commander'
import { parseDuration } from '../lib/duration.ts'
import { type Answer, formatAnswer, notesOf, type OutputFormat } from './answer.ts'
import { terminalScreen, watch } from './watch.ts'

/** The options of every reading command. */
export interface ReadingOptions {
  readonly output: OutputFormat
  readonly watch?: boolean
  /** Between two answers of `--watch`, milliseconds. */
  readonly interval?: number
}

const INTERVAL_MS = 2_000

/** More often is work for the daemon that nobody can read. */
const MIN_INTERVAL_MS = 200

/** The option `-o table|wide|json|yaml`. */
function outputOption(): Option {
  return new Option('-o, --output <format>', 'output format')
    .choices(['table', 'wide', 'json', 'yaml'])
    .default('table')
}

/** A command with these options; the caller adds arguments and the action, which calls {@link show}. */
export function readingCommand(name: string, description: string): Command {
  return addReadingOptions(new Command(name).description(description))
}

/** Adds `-o`, and `--watch` unless asking twice does something twice, to a command whose action calls {@link show}. */
export function addReadingOptions(
  command: Command,
  {
    isRepeatable = true,
    intervalMs = INTERVAL_MS,
  }: { readonly isRepeatable?: boolean; readonly intervalMs?: number } = {},
): Command {
  command.addOption(outputOption())
  if (!isRepeatable) return command
  return command
    .option('-w, --watch', 'show it again and again, until Ctrl-C')
    .addOption(intervalOption(intervalMs))
}

/** The option `--interval DURATION`. */
function intervalOption(defaultMs: number): Option {
  return new Option('--interval <duration>', 'time between two answers of --watch')
    .argParser((text: string) => {
      const ms = parseDuration(text)
      if (ms === undefined || ms < MIN_INTERVAL_MS)
        throw new InvalidArgumentError(
          `It must be a duration such as 1s or 1m, at least ${MIN_INTERVAL_MS}ms.`,
        )
      return ms
    })
    .default(defaultMs, `${defaultMs / 1_000}s`)
}

/**
 * Prints what `ask` answers, once or with `--watch` until the process is asked to end, and sets the exit code.
 * @throws what the first `ask` throws; with `--watch` later failures are said and `ask` is called again
 */
export async function show(options: ReadingOptions, ask: () => Promise<Answer>): Promise<void> {
  const answer =
    options.watch === true
      ? await watch(ask, {
          format: options.output,
          intervalMs: options.interval ?? INTERVAL_MS,
          screen: terminalScreen(),
        })
      : await once(options.output, ask)
  if (answer?.exitCode !== undefined) process.exitCode = answer.exitCode
}

async function once(format: OutputFormat, ask: () => Promise<Answer>): Promise<Answer> {
  const answer = await ask()
  const text = await formatAnswer(answer, format, process.stdout.columns)
  if (text !== '') console.log(text)
  for (const note of notesOf(answer, format)) console.error(note)
  return answer
}
