/**
 * What docs/metrics.md says beside its tables, which are written from the code.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { responseFlags } from '../../src/model/response-flag.ts'
import { metrics } from '../../src/telemetry/metrics.ts'

const doc = readFileSync(new URL('../../docs/metrics.md', import.meta.url), 'utf8')

/** The cells of every table row whose first cell is one piece of code. */
function tableRows(): readonly (readonly string[])[] {
  return doc
    .split('\n')
    .filter((line) => /^\| `[^`]+` \|/.test(line))
    .map((line) =>
      line
        .slice(1, -1)
        .split('|')
        .map((cell) => cell.trim()),
    )
}

test('docs/metrics.md explains every label that a metric has', () => {
  const explained = new Set(
    tableRows().flatMap(([first]) =>
      [...(first ?? '').matchAll(/`([^`]+)`/g)].map(([, name]) => name),
    ),
  )
  // The row of a label pair has two pieces of code in its first cell.
  for (const [, names] of doc.matchAll(/^\| (`[^|]+) \|/gm))
    for (const [, name] of (names ?? '').matchAll(/`([^`]+)`/g)) explained.add(name)
  for (const { name, labels } of metrics)
    for (const label of labels) assert.ok(explained.has(label), `${label} of ${name}`)
})

test('docs/metrics.md lists every response flag with the meaning that the code gives it', () => {
  const flags = tableRows().filter(
    ([first, ...rest]) => rest.length === 1 && /^`[A-Z-]+`$/.test(first ?? ''),
  )
  assert.deepEqual(
    flags,
    Object.entries(responseFlags).map(([flag, meaning]) => [`\`${flag}\``, meaning]),
  )
})

test('every metric that a query in docs/metrics.md names exists', () => {
  const names = new Set<string>(
    metrics.flatMap(({ name, type }) =>
      type === 'histogram' ? [`${name}_bucket`, `${name}_sum`, `${name}_count`] : [name],
    ),
  )
  const queries = doc.slice(doc.indexOf('## Queries'))
  const used = [...queries.matchAll(/hostmesh_[a-z_]+/g)].map(([name]) => name)
  assert.ok(used.length >= 5)
  for (const name of used) assert.ok(names.has(name), name)
})
