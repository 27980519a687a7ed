/**
 * Diagnostic log: one JSON object a line on standard error (journald keeps it), or logfmt-like text for
 * people. Not the access log. Rate limits repeated messages by key so that a peer cannot flood the disk.
 */
import { pino } from 'pino'

/** The only logging interface the code sees; `fields` must hold no secrets. */
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

/** What a log needs to know. */
export interface LogOptions {
  readonly level: LogLevel
  readonly format: 'json' | 'text'
}

/** At most this many lines a minute with the same message; the rest is counted and summed up. */
const LINES_PER_MINUTE_AND_MESSAGE = 100

/** Messages remembered for rate limiting; beyond it the oldest are forgotten. */
const MAX_REMEMBERED_MESSAGES = 1_000

/** Builds a log that writes to standard error. */
export function createLog(options: LogOptions): Log {
  if (options.format === 'text') return textLog(options.level, '')
  const destination = pino.destination({ dest: 2, sync: false })
  const root = pino(
    {
      level: options.level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    destination,
  )
  return limited((level, subsystem, message, fields) =>
    root[level](subsystem === '' ? fields : { subsystem, ...fields }, message),
  )
}

/** A log that drops everything; for tests of code that must be given one. */
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

function textLog(minimum: LogLevel, prefix: string): Log {
  return limited((level, subsystem, message, fields) => {
    if (SEVERITY[level] < SEVERITY[minimum]) return
    const pairs = Object.entries(fields)
      .map(([key, value]) => ` ${key}=${JSON.stringify(value)}`)
      .join('')
    const time = new Date().toISOString().slice(11, 23)
    const where = subsystem === '' ? prefix : `${subsystem}: `
    process.stderr.write(`${time} ${level.padEnd(5)} ${where}${message}${pairs}\n`)
  })
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
