/**
 * Diagnostic log: one JSON object per line on standard error (journald keeps it), logfmt, or text for people. The
 * access log may write to the same output. Repeated messages are rate-limited by key so that a peer cannot flood the disk.
 *
 * Never makes a thread wait and never fails: with a full disk, or a slow or closed reader, lines are
 * lost and counted (`line-output.ts`).
 */
import { isMainThread } from 'node:worker_threads'
import { pino } from 'pino'
import { LineOutput, makeStandardErrorNonBlocking, writeStandardError } from './line-output.ts'
import { logfmtValue, quoted } from './log-text.ts'

/** The only logging interface of the code; `fields` must hold no secrets. */
export interface Log {
  debug(message: string, fields?: Record<string, unknown>): void
  info(message: string, fields?: Record<string, unknown>): void
  warn(message: string, fields?: Record<string, unknown>): void
  error(message: string, fields?: Record<string, unknown>): void
  /** The same log with a subsystem name in each line. */
  child(subsystem: string): Log
}

/** Levels, least to most severe. */
export type LogLevel = 'debug' | 'info' | 'warn' | 'error'

/** Options of a log. */
export interface LogOptions {
  readonly level: LogLevel
  readonly format: 'json' | 'logfmt' | 'text'
}

/** Maximum number of lines per minute with the same message; the rest is counted and reported as a sum. */
const LINES_PER_MINUTE_AND_MESSAGE = 100

/** Messages remembered for rate limiting; beyond it the oldest are forgotten. */
const MAX_REMEMBERED_MESSAGES = 1_000

/** Maximum characters of one line; of a longer one only the beginning of its fields is written. */
const MAX_LINE_CHARS = 16_384

/**
 * Creates the log of this thread, which writes to standard error. The main thread must create the first log of the
 * process, because that sets up standard error.
 * @param onLost called for each line that could not be written
 */
export function createLog(options: LogOptions, onLost: () => void = () => undefined): Log {
  return createLogOn(openStandardError(options, onLost), options)
}

/** Standard error for whole lines of this thread: all that it writes there must go through one output. */
export function openStandardError(options: LogOptions, onLost: () => void): LineOutput {
  if (isMainThread) makeStandardErrorNonBlocking()
  const format = formatOf(options)
  const output = new LineOutput({
    write: writeStandardError,
    report: (lines, reason) => format('warn', '', 'Log lines were lost', { lines, reason }),
    onLost,
  })
  process.on('exit', () => output.finish())
  return output
}

/** Creates the log of this thread on its output. */
export function createLogOn(output: LineOutput, options: LogOptions): Log {
  const format = formatOf(options)
  return limited((level, subsystem, message, fields) => {
    if (SEVERITY[level] < SEVERITY[options.level]) return
    const line = format(level, subsystem, message, fields)
    output.line(
      line.length <= MAX_LINE_CHARS
        ? line
        : format(level, subsystem, message, { truncated: line.slice(0, MAX_LINE_CHARS / 2) }),
    )
  })
}

/** A log that discards everything; for tests of code that needs one. */
export const silentLog: Log = {
  debug: () => undefined,
  info: () => undefined,
  warn: () => undefined,
  error: () => undefined,
  child: () => silentLog,
}

type WriteLine = (
  level: LogLevel,
  subsystem: string,
  message: string,
  fields: Record<string, unknown>,
) => void

const SEVERITY: Record<LogLevel, number> = { debug: 0, info: 1, warn: 2, error: 3 }

/** The text of one line, newline included. */
type FormatLine = (...line: Parameters<WriteLine>) => string

const textFormat: FormatLine = (level, subsystem, message, fields) => {
  const pairs = Object.entries(fields)
    .map(([key, value]) => ` ${key}=${toJson(value)}`)
    .join('')
  const time = new Date().toISOString().slice(11, 23)
  const where = subsystem === '' ? '' : `${subsystem}: `
  return `${time} ${level.padEnd(5)} ${where}${message}${pairs}\n`
}

const logfmtFormat: FormatLine = (level, subsystem, message, fields) => {
  const pairs = Object.entries(fields).map(([key, value]) => {
    const text = typeof value === 'string' ? value : toJson(value)
    return ` ${key.replaceAll(/[^\w.-]/g, '_')}=${logfmtValue(text, MAX_LINE_CHARS)}`
  })
  const where = subsystem === '' ? '' : ` subsystem=${logfmtValue(subsystem, MAX_LINE_CHARS)}`
  const text = quoted(message, MAX_LINE_CHARS)
  return `time=${new Date().toISOString()} level=${level}${where} msg=${text}${pairs.join('')}\n`
}

function formatOf({ level, format }: LogOptions): FormatLine {
  if (format === 'text') return textFormat
  return format === 'logfmt' ? logfmtFormat : jsonFormat(level)
}

/** Never throws: a field may hold a value that JSON cannot represent. */
function toJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? 'undefined'
  } catch {
    return JSON.stringify(String(value))
  }
}

function jsonFormat(level: LogLevel): FormatLine {
  let line = ''
  const root = pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    { write: (text) => (line = text) },
  )
  return (severity, subsystem, message, fields) => {
    root[severity](subsystem === '' ? fields : { subsystem, ...fields }, message)
    return line
  }
}

function limited(write: WriteLine): Log {
  const linesByMessage = new Map<string, { minute: number; lines: number }>()
  const emit: WriteLine = (level, subsystem, message, fields) => {
    const minute = Math.floor(Date.now() / 60_000)
    let seen = linesByMessage.get(message)
    if (seen === undefined) {
      if (linesByMessage.size >= MAX_REMEMBERED_MESSAGES) linesByMessage.clear()
      seen = { minute, lines: 0 }
      linesByMessage.set(message, seen)
    }
    if (seen.minute !== minute) {
      const dropped = seen.lines - LINES_PER_MINUTE_AND_MESSAGE
      seen.minute = minute
      seen.lines = 0
      if (dropped > 0) write('warn', subsystem, 'Repeated message dropped', { message, dropped })
    }
    seen.lines += 1
    if (seen.lines <= LINES_PER_MINUTE_AND_MESSAGE) write(level, subsystem, message, fields)
  }
  const named = (subsystem: string): Log => ({
    debug: (message, fields = {}) => emit('debug', subsystem, message, fields),
    info: (message, fields = {}) => emit('info', subsystem, message, fields),
    warn: (message, fields = {}) => emit('warn', subsystem, message, fields),
    error: (message, fields = {}) => emit('error', subsystem, message, fields),
    child: (name) => named(subsystem === '' ? name : `${subsystem}.${name}`),
  })
  return named('')
}
