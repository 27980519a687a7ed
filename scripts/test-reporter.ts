/**
 * node:test reporter of one test file: one JSON line per finished test, for run-test-file.ts.
 *
 * It also notes when a test starts, so that a file which never ends can be told by the names of the
 * tests that were still running. The last line is the summary; without it the file did not end well.
 */
import type { TestEvent } from 'node:test/reporters'
import { inspect } from 'node:util'

/** One line of the report. */
export type ReportLine =
  | { readonly kind: 'begin' | 'end' | 'pass' | 'skip'; readonly name: string }
  | { readonly kind: 'fail'; readonly name: string; readonly reason: string }
  | { readonly kind: 'note'; readonly text: string }
  | { readonly kind: 'summary' }

/** Turns node:test events into report lines; node loads it by its default export. */
// oxlint-disable-next-line import/no-default-export -- node --test-reporter takes the default export
export default async function* report(events: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const path: string[] = []
  for await (const event of events) {
    const line = toLine(event, path)
    if (line !== undefined) yield `${JSON.stringify(line)}\n`
  }
}

/** `path` holds the names of the enclosing suites, by nesting level; test:start comes in that order. */
function toLine(event: TestEvent, path: string[]): ReportLine | undefined {
  // oxlint-disable-next-line typescript/switch-exhaustiveness-check -- Node adds kinds in minor versions
  switch (event.type) {
    case 'test:start':
      path.length = event.data.nesting
      path.push(event.data.name)
      return undefined
    case 'test:dequeue':
      return { kind: 'begin', name: event.data.name }
    case 'test:complete':
      return { kind: 'end', name: event.data.name }
    case 'test:pass':
      if (event.data.details.type === 'suite') return undefined
      return { kind: isLeftOut(event.data) ? 'skip' : 'pass', name: fullName(path, event.data) }
    case 'test:fail': {
      // Whatever holds a failed test fails too; it counts by itself only when its own body threw.
      const { error } = event.data.details
      if ('failureType' in error && error.failureType === 'subtestsFailed') return undefined
      const name = fullName(path, event.data)
      if (isLeftOut(event.data)) return { kind: 'skip', name }
      return { kind: 'fail', name, reason: describe(error) }
    }
    case 'test:diagnostic':
      // The closing figures are diagnostics too ("tests 7"); what is left are the runner's warnings.
      if (
        /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/.test(
          event.data.message,
        )
      )
        return undefined
      return { kind: 'note', text: event.data.message }
    case 'test:summary':
      return { kind: 'summary' }
    default:
      return undefined
  }
}

/** A test marked todo is one that was not really run: it counts as skipped, whatever it did. */
function isLeftOut(data: { skip?: string | boolean; todo?: string | boolean }): boolean {
  return (
    (data.skip !== undefined && data.skip !== false) ||
    (data.todo !== undefined && data.todo !== false)
  )
}

function fullName(path: readonly string[], data: { name: string; nesting: number }): string {
  return [...path.slice(0, data.nesting), data.name].join(' > ')
}

function describe(error: Error): string {
  return describeThrown(error.cause ?? error)
}

function describeThrown(thrown: unknown): string {
  // What `await using` makes of a failed test whose clean-up failed as well: both matter.
  if (thrown instanceof SuppressedError)
    return `${describeThrown(thrown.suppressed)}\nand then, while cleaning up: ${describeThrown(thrown.error)}`
  if (thrown instanceof Error) return thrown.stack ?? thrown.message
  return typeof thrown === 'string' ? thrown : inspect(thrown)
}
