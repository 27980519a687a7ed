/**
 * A document of the greatest size that is read costs work in proportion to its size, whatever is in it: the
 * catalog file is read by the main thread of a running daemon.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { z } from 'zod'
import { configSchema } from '../../src/config/schema.ts'
import { type ParsedYaml, parseYamlDocument } from '../../src/lib/yaml-document.ts'

const anything = z.record(z.string(), z.unknown())

function lines(count: number, line: (index: number) => string): string {
  return Array.from({ length: count }, (_, index) => line(index)).join('\n')
}

/** Least processor time of this thread in `rounds`, milliseconds: what else the machine does hardly counts. */
function leastWorkMs(rounds: number, work: () => unknown): number {
  const times = Array.from({ length: rounds }, () => {
    const before = process.threadCpuUsage()
    work()
    const { user, system } = process.threadCpuUsage(before)
    return (user + system) / 1_000
  })
  return Math.min(...times)
}

function messages(parsed: ParsedYaml<unknown>): readonly string[] {
  return 'problems' in parsed ? parsed.problems.map(({ message }) => message) : []
}

const shapes: Record<string, (count: number) => string> = {
  'unknown keys of the top map': (count) => lines(count, (i) => `k${i}: 1`),
  'unknown keys of a map inside': (count) => `tunnel:\n${lines(count, (i) => `  k${i}: 1`)}`,
  'duplicate keys': (count) => lines(count, () => 'k: 1'),
}

for (const [what, textOf] of Object.entries(shapes))
  test(`ten times the size costs about ten times the work: ${what}`, (t) => {
    const small = textOf(3_000)
    const large = textOf(30_000)
    const ofSmall = leastWorkMs(3, () => parseYamlDocument(small, configSchema))
    const ofLarge = leastWorkMs(1, () => parseYamlDocument(large, configSchema))
    t.diagnostic(`${ofSmall.toFixed(0)} ms, ${ofLarge.toFixed(0)} ms`)
    // Searching the map for every key made it 45.
    assert.ok(ofLarge < 25 * ofSmall, `${ofSmall} ms for 3,000, ${ofLarge} ms for 30,000`)
  })

test('more aliases than a file needs are refused before any is followed', () => {
  const text = lines(20_000, (i) => `k${i}: &a${i} 1\nl${i}: *a${i}`)
  const parsed = parseYamlDocument(text, anything)
  assert.deepEqual(messages(parsed), ['The file has 20000 aliases, at most 500 are taken'])
})

test('the aliases of an ordinary file are followed', () => {
  const parsed = parseYamlDocument('a: &x {b: [1, 2]}\nc: *x\nd: {e: *x}', anything)
  assert.ok('document' in parsed)
  assert.deepEqual(parsed.document.value, {
    a: { b: [1, 2] },
    c: { b: [1, 2] },
    d: { e: { b: [1, 2] } },
  })
})
