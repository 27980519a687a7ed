/**
 * Lines to a descriptor that is full, slow or gone: what is lost is said, also when nothing is logged any more.
 */
import assert from 'node:assert/strict'
import { describe, mock, test } from 'node:test'
import { LineOutput, MAX_KEPT_BYTES } from '../../src/lib/line-output.ts'

/** A descriptor that takes what it is told to take. */
function scene(): {
  output: LineOutput
  taken: string[]
  takes: { now: boolean }
  lost: () => number
} {
  const taken: string[] = []
  const takes = { now: true }
  let lost = 0
  const output = new LineOutput({
    write: (bytes, offset) => {
      if (!takes.now) throw Object.assign(new Error('full'), { code: 'EAGAIN' })
      taken.push(Buffer.from(bytes.subarray(offset)).toString())
      return bytes.length - offset
    },
    report: (lines, reason) => `lost ${lines} ${reason}\n`,
    onLost: () => {
      lost += 1
    },
  })
  return { output, taken, takes, lost: () => lost }
}

describe('lines to a slow reader', () => {
  test('a reader that takes everything at once hears of the gap, although nobody logs again', (t) => {
    mock.timers.enable({ apis: ['setTimeout'] })
    t.after(() => mock.timers.reset())
    const { output, taken, takes, lost } = scene()
    takes.now = false
    const line = `${'x'.repeat(1_023)}\n`
    const kept = MAX_KEPT_BYTES / line.length
    for (let i = 0; i < kept + 7; i += 1) output.line(line)
    assert.equal(lost(), 7)
    takes.now = true
    mock.timers.tick(60_000)
    assert.equal(taken.length, kept + 1)
    assert.equal(taken.at(-1), 'lost 7 EAGAIN\n')
  })

  test('a gap is told once, where it is', (t) => {
    mock.timers.enable({ apis: ['setTimeout'] })
    t.after(() => mock.timers.reset())
    const { output, taken, takes } = scene()
    takes.now = false
    output.line(`${'x'.repeat(MAX_KEPT_BYTES - 1)}\n`)
    output.line('gap\n')
    takes.now = true
    mock.timers.tick(60_000)
    output.line('after\n')
    mock.timers.tick(60_000)
    assert.deepEqual(taken.slice(1), ['lost 1 EAGAIN\n', 'after\n'])
  })
})
