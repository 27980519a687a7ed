/**
 * Where the nodes of the dashboard's graph stand.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import * as fc from 'fast-check'

import type { Pair } from '../../src/dashboard/graph/layers.ts'
import { arrange, extend } from '../../src/dashboard/graph/layout.ts'
import { ImaginedFleet } from '../harness/fleet-documents.ts'

/** Size of a node, with nothing between. */
const [WIDTH, HEIGHT] = [168, 40]

const graphs = fc.integer({ min: 1, max: 40 }).chain((count) =>
  fc.tuple(
    fc.constant(Array.from({ length: count }, (_, index) => `s${index}`)),
    fc.array(
      fc.tuple(
        fc.integer({ min: 0, max: count - 1 }).map((index) => `s${index}`),
        fc.integer({ min: 0, max: count - 1 }).map((index) => `s${index}`),
      ),
      { maxLength: 120 },
    ),
  ),
)

function assertApart(places: ReadonlyMap<string, { x: number; y: number }>): void {
  const all = [...places]
  for (const [index, [id, a]] of all.entries())
    for (const [other, b] of all.slice(index + 1))
      assert.ok(
        Math.abs(a.x - b.x) >= WIDTH || Math.abs(a.y - b.y) >= HEIGHT,
        `${id} and ${other} overlap`,
      )
}

test('every node has a place, and no two nodes overlap, cycles or not', () => {
  fc.assert(
    fc.property(graphs, ([ids, pairs]) => {
      const { places } = arrange(ids, pairs)
      assert.deepEqual([...places.keys()].toSorted(), ids.toSorted())
      for (const { x, y } of places.values()) assert.ok(Number.isFinite(x) && Number.isFinite(y))
      assertApart(places)
    }),
  )
})

test('the same graph has the same layout, in whatever order it is told', () => {
  fc.assert(
    fc.property(graphs, ([ids, pairs]) => {
      const first = arrange(ids, pairs)
      const second = arrange(ids.toReversed(), pairs)
      for (const [id, place] of first.places) assert.deepEqual(second.places.get(id), place)
    }),
  )
})

test('callers stand left of what they call where no cycle forbids it', () => {
  const pairs: Pair[] = [
    ['web', 'cart'],
    ['web', 'db'],
    ['cart', 'db'],
    ['db', 'disk'],
  ]
  const { places, routes } = arrange(['web', 'cart', 'db', 'disk'], pairs)
  for (const [source, destination] of pairs)
    assert.ok((places.get(source)?.x ?? 0) < (places.get(destination)?.x ?? 0))
  // The one pair that crosses a layer passes it beside the node there.
  const [pass] = routes.get('web\u0000db') ?? []
  assert.ok(pass !== undefined)
  assert.equal(pass.x, places.get('cart')?.x)
  assert.ok(Math.abs(pass.y - (places.get('cart')?.y ?? 0)) >= HEIGHT / 2)
})

test('nodes that come leave known ones where they are, and overlap none', () => {
  fc.assert(
    fc.property(graphs, fc.integer({ min: 1, max: 40 }), ([ids, pairs], known) => {
      const old = ids.slice(0, known)
      const before = arrange(
        old,
        pairs.filter((pair) => pair.every((id) => old.includes(id))),
      )
      const { places } = extend(before, ids, pairs)
      for (const [id, place] of before.places) assert.deepEqual(places.get(id), place)
      assert.equal(places.size, ids.length)
      assertApart(places)
    }),
  )
})

test('a tangle of 300 services stays a picture that is not ten times wider than high', () => {
  const fleet = new ImaginedFleet({ services: 300, edges: 2_000, hosts: 60, nowMs: 0 })
  const places = [...arrange(fleet.services, fleet.pairs).places.values()]
  const width = Math.max(...places.map(({ x }) => x)) - Math.min(...places.map(({ x }) => x))
  const height = Math.max(...places.map(({ y }) => y)) - Math.min(...places.map(({ y }) => y))
  assert.ok(width / height < 3 && width / height > 1 / 3, `${width} x ${height}`)
})
