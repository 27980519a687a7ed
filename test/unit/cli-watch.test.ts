/**
 * `--watch`: what is written on a terminal and on a pipe, and how failures and the end are taken.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { Answer } from '../../src/cli/answer.ts'
import { type Screen, watch } from '../../src/cli/watch.ts'

/** A screen that keeps what is written, and ends after so many waits. */
class FakeScreen implements Screen {
  readonly isTerminal: boolean
  columns: number | undefined = 80
  rows: number | undefined = 5
  written = ''
  readonly warned: string[] = []
  readonly #ending = new AbortController()
  #resized = (): void => undefined

  constructor(isTerminal: boolean) {
    this.isTerminal = isTerminal
  }

  get ended(): AbortSignal {
    return this.#ending.signal
  }

  write(text: string): void {
    this.written += text
  }

  warn(line: string): void {
    this.warned.push(line)
  }

  onResize(listen: () => void): void {
    this.#resized = listen
  }

  resize(columns: number): void {
    this.columns = columns
    this.#resized()
  }

  /** A wait of no time; the last of them ends the screen. */
  waits(count: number, between: (left: number) => void = () => undefined): () => Promise<void> {
    let left = count
    return async () => {
      left -= 1
      between(left)
      if (left <= 0) this.#ending.abort()
    }
  }
}

function answer(text: string, notes: readonly string[] = []): Answer {
  return { document: { text }, text: () => text, notes }
}

/** Answers with each of these in turn, then with the last again. */
function asker(...outcomes: (Answer | Error)[]): () => Promise<Answer> {
  let at = 0
  return async () => {
    const outcome = outcomes[Math.min(at, outcomes.length - 1)]
    at += 1
    if (outcome === undefined || outcome instanceof Error) throw outcome ?? new Error('nothing')
    return outcome
  }
}

const HOME = '\u001B[H'

test('on a terminal an answer replaces the one before, in the room that there is', async () => {
  const screen = new FakeScreen(true)
  const long = Array.from({ length: 9 }, (_, i) => `line ${i}`).join('\n')
  const last = await watch(asker(answer('one'), answer(long)), {
    format: 'table',
    intervalMs: 1,
    screen,
    wait: screen.waits(2),
  })
  const [start, first, second] = screen.written.split(HOME)
  assert.equal(start, '\u001B[?1049h\u001B[?25l\u001B[?7l')
  assert.match(first ?? '', /^one/)
  const drawn = (second ?? '').split('\u001B[J')[0] ?? ''
  assert.deepEqual(
    drawn.split('\r\n').map((line) => line.replace('\u001B[K', '')),
    ['line 0', 'line 1', 'line 2', '… 6 more lines', ''],
  )
  assert.ok(screen.written.endsWith(`\u001B[?7h\u001B[?25h\u001B[?1049l${long}\n`))
  assert.equal(last?.text({ width: 80, isWide: false }), long)
})

test('a failure on a terminal is shown above the last answer, until the next one', async () => {
  const screen = new FakeScreen(true)
  await watch(asker(answer('good'), new Error('away'), answer('better')), {
    format: 'table',
    intervalMs: 1,
    screen,
    wait: screen.waits(3),
  })
  const [, , second = '', third = ''] = screen.written.split(HOME)
  assert.match(second, /^hostmesh: away.*\r\ngood/)
  assert.match(third, /^better/)
})

test('another size of the terminal draws again with its width', async () => {
  const screen = new FakeScreen(true)
  const widths: (number | undefined)[] = []
  const sized: Answer = {
    document: {},
    text: ({ width }) => {
      widths.push(width)
      return 'x'
    },
  }
  await watch(async () => sized, {
    format: 'table',
    intervalMs: 1,
    screen,
    wait: screen.waits(1, () => screen.resize(40)),
  })
  assert.deepEqual(widths.slice(0, 2), [80, 40])
})

test('on a pipe one document follows the other, and each trouble is said once', async () => {
  const texts: Record<string, string> = {
    json: '{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n',
    yaml: 'text: a\n---\ntext: b\n',
    table: 'a\n\nb\n',
  }
  for (const format of ['json', 'yaml', 'table'] as const) {
    const screen = new FakeScreen(false)
    const gone = new Error('away')
    await watch(asker(answer('a'), gone, gone, answer('b')), {
      format,
      intervalMs: 1,
      screen,
      wait: screen.waits(4),
    })
    assert.equal(screen.written, texts[format])
    assert.deepEqual(screen.warned, ['hostmesh: away'])
  }
})

test('json is never drawn, not even on a terminal', async () => {
  const screen = new FakeScreen(true)
  await watch(asker(answer('a')), { format: 'json', intervalMs: 1, screen, wait: screen.waits(1) })
  assert.equal(screen.written, '{\n  "text": "a"\n}\n')
})

test('a first answer that fails is a failure of the command', async () => {
  for (const isTerminal of [true, false]) {
    const screen = new FakeScreen(isTerminal)
    await assert.rejects(
      watch(asker(new Error('away')), {
        format: 'table',
        intervalMs: 1,
        screen,
        wait: screen.waits(1),
      }),
      /away/,
    )
    assert.equal(screen.written, '', 'the terminal stays as it is')
  }
})
