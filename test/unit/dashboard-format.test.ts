/**
 * Numbers, addresses and choices of the dashboard, as far as they need no browser.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import * as fc from 'fast-check'

import * as cli from '../../src/cli/render/format.ts'
import {
  formatAge,
  formatByteRate,
  formatBytes,
  formatCores,
  formatCount,
  formatLatency,
  formatRate,
  formatShare,
  shorten,
} from '../../src/dashboard/format.ts'
import {
  formatSelection,
  parseSelection,
  type Selection,
} from '../../src/dashboard/graph/selection.ts'
import { formatView, parseView, patched } from '../../src/dashboard/view.ts'

test('ages and sizes are written as the command line writes them', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 1e15, noNaN: true }), (value) => {
      assert.equal(formatAge(value), cli.formatAge(value))
      assert.equal(formatBytes(value), cli.formatBytes(value))
    }),
  )
})

test('latencies below a second are written as the command line writes them', () => {
  fc.assert(
    fc.property(fc.double({ min: 0, max: 999, noNaN: true }), (ms) => {
      assert.equal(formatLatency(ms), cli.formatRoundTrip(ms))
    }),
  )
  assert.equal(formatLatency(1_500), '1.5s')
  assert.equal(formatLatency(12_400), '12s')
})

test('what nobody reported is a dash, and zero is zero', () => {
  for (const format of [
    formatBytes,
    formatByteRate,
    formatCores,
    formatCount,
    formatLatency,
    formatRate,
    formatShare,
  ])
    assert.equal(format(null), '–')
  assert.deepEqual([formatRate(0), formatShare(0), formatBytes(0)], ['0/s', '0%', '0B'])
})

test('a share or a rate that is not zero never looks like zero', () => {
  assert.equal(formatShare(0.00001), '<0.01%')
  assert.equal(formatRate(0.001), '<0.1/s')
  assert.deepEqual([0.0025, 0.05, 0.5].map(formatShare), ['0.25%', '5.0%', '50%'])
  assert.deepEqual([0.3, 12, 1_234].map(formatRate), ['0.3/s', '12/s', '1.2k/s'])
})

test('a shortened name has at most the length and says that it is cut', () => {
  assert.equal(shorten('payments', 8), 'payments')
  assert.equal(shorten('payments-ledger', 9), 'payments…')
})

test('each view has an address that leads to it', () => {
  fc.assert(
    fc.property(
      fc.constantFrom('services', 'hosts'),
      fc.string({ unit: 'binary' }).filter((name) => !/[\ud800-\udfff]/.test(name)),
      fc.dictionary(fc.stringMatching(/^[a-z]{1,6}$/), fc.string({ minLength: 1 })),
      (page, name, params) => {
        const view = { page, name, params } as const
        const again = parseView(formatView(view))
        assert.deepEqual(
          { ...again, params: { ...again.params } },
          { ...view, params: { ...params } },
        )
      },
    ),
  )
})

test('an address that nobody wrote shows the graph', () => {
  for (const hash of ['', '#', '#/', '#/nowhere', '#?x', '#/%'])
    assert.equal(parseView(hash).page, 'graph')
  assert.equal(parseView('#/services/%zz').name, '%zz')
})

test('a parameter is removed by an empty text or by nothing', () => {
  const view = parseView('#/graph?a=1&b=2&c=3')
  assert.equal(formatView(patched(view, { a: undefined, b: '', c: '4' })), '#/graph?c=4')
})

test('each selection has a text that means it, whatever names are like', () => {
  const name = fc.string({ minLength: 1 }).filter((text) => !text.includes('\u0000'))
  const selections: fc.Arbitrary<Selection> = fc.oneof(
    name.map((id) => ({ kind: 'node', id }) as const),
    fc.tuple(name, name).map(([a, b]) => ({ kind: 'edge', key: `${a}\u0000${b}` }) as const),
  )
  fc.assert(
    fc.property(selections, (selection) => {
      assert.deepEqual(parseSelection(formatSelection(selection)), selection)
    }),
  )
})
