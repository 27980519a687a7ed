/**
 * Tables: columns line up, nothing from outside reaches the terminal raw.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { renderTable } from '../../src/cli/render/table.ts'

test('columns are as wide as their widest cell and two spaces apart', () => {
  assert.equal(
    renderTable(
      ['NAME', 'STATE', 'N'],
      [
        ['web', 'open', '12'],
        ['long-name', 'half-closed'],
      ],
    ),
    ['NAME       STATE        N', 'web        open         12', 'long-name  half-closed'].join(
      '\n',
    ),
  )
})

test('a table without rows is its headings', () => {
  assert.equal(renderTable(['A', 'B'], []), 'A  B')
})

test('a cell that is too long ends with an ellipsis, but the last of a row is whole', () => {
  const [, row] = renderTable(['A', 'B'], [['x'.repeat(200), 'y'.repeat(200)]]).split('\n')
  assert.equal(row, `${'x'.repeat(79)}…  ${'y'.repeat(200)}`)
})

test('whatever cells hold, there is one line per row, without control characters', () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.string({ unit: 'binary' }), fc.string({ unit: 'binary' })), {
        maxLength: 5,
      }),
      (rows) => {
        const lines = renderTable(['ONE', 'TWO'], rows).split('\n')
        assert.equal(lines.length, rows.length + 1)
        for (const line of lines) assert.doesNotMatch(line, /[\p{Cc}\p{Cf}]/u)
      },
    ),
    { numRuns: 100 },
  )
})
