/**
 * Tables: columns line up, nothing from outside reaches the terminal raw.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { renderList, renderTable } from '../../src/cli/render/table.ts'

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

/** The table on a terminal of this width. */
function narrow(width: number, headings: string[], rows: string[][]): string[] {
  return renderTable(headings, rows, { width, isWide: false }).split('\n')
}

test('a terminal shortens headings before cells, and the widest cells first', () => {
  const headings = ['CONNECT P50/P99', 'NAME', 'STATE']
  const row = ['0.4 / 2', 'a-very-long-name-of-a-service', 'open']
  assert.deepEqual(narrow(50, headings, [row]), [
    'CONNECT P50…  NAME                           STATE',
    '0.4 / 2       a-very-long-name-of-a-service  open',
  ])
  assert.deepEqual(narrow(30, headings, [row]), [
    'CONNEC…  NAME            STATE',
    '0.4 / 2  a-very-long-n…  open',
  ])
})

test('on a terminal the last column goes on below itself, and nothing of it is lost', () => {
  const reason = 'no intention matches, the default policy says deny'
  const [, ...shown] = narrow(40, ['SOURCE', 'REASON'], [['web', reason]])
  assert.equal(shown.map((line) => line.slice(8)).join(' '), reason)
  assert.ok(shown.slice(1).every((line) => line.startsWith(' '.repeat(8))))
})

test('whatever the cells and the terminal, no line is longer than it, as far as columns can shrink', () => {
  const cell = fc.string({ maxLength: 120 })
  fc.assert(
    fc.property(
      fc.array(fc.tuple(cell, cell, cell)),
      fc.integer({ min: 20, max: 300 }),
      (rows, width) => {
        for (const line of renderTable(['ONE', 'TWO', 'THREE'], rows, {
          width,
          isWide: false,
        }).split('\n'))
          assert.ok(line.length <= width, `${line.length} > ${width}: ${line}`)
      },
    ),
    { numRuns: 100 },
  )
})

test('wide shows every column in full, table leaves out those that are for wide', () => {
  const columns = [
    { heading: 'NAME', cell: (name: string) => name },
    { heading: 'MORE', isWide: true, cell: () => 'x'.repeat(100) },
    { heading: 'END', cell: () => 'end' },
  ]
  const [row] = ['a'.repeat(100)]
  assert.equal(
    renderList(columns, [row ?? ''], { width: 40, isWide: true }).split('\n')[1],
    `${'a'.repeat(100)}  ${'x'.repeat(100)}  end`,
  )
  assert.doesNotMatch(renderList(columns, [row ?? ''], { width: 40, isWide: false }), /MORE|x/)
})
