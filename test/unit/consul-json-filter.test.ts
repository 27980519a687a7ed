/**
 * What of a JSON text is let through while it arrives.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { createJsonFilter } from '../../src/controlplane/catalog/consul/json-filter.ts'

function filter(text: string, levels: number, chunk: number = text.length + 1): string {
  const one = createJsonFilter(levels)
  const bytes = Buffer.from(text)
  const parts: Buffer[] = []
  for (let at = 0; at < bytes.length; at += chunk)
    parts.push(one.push(bytes.subarray(at, at + chunk)))
  return Buffer.concat(parts).toString()
}

/** The same value with nothing below so many levels. */
function cut(value: unknown, levels: number): unknown {
  if (Array.isArray(value)) return levels === 0 ? [] : value.map((each) => cut(each, levels - 1))
  if (typeof value !== 'object' || value === null) return value
  if (levels === 0) return {}
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => [key, cut(each, levels - 1)]),
  )
}

test('what is nested deeper is left out, and what is left is the same value without it', () => {
  const json = fc.jsonValue({ depthSize: 'medium' })
  fc.assert(
    fc.property(
      json,
      fc.integer({ min: 0, max: 5 }),
      fc.integer({ min: 1, max: 9 }),
      (value, levels, chunk) => {
        // A property may have any name, also that of a prototype.
        const text = JSON.stringify(value)
        assert.deepEqual(JSON.parse(filter(text, levels, chunk)), cut(JSON.parse(text), levels))
      },
    ),
  )
})

test('of a long text the beginning is let through, whatever escapes it is made of', () => {
  for (const unit of ['x', '\\', '"', '\n', '\u0001', 'é', '\u2028', '\\"', 'a\u0001'])
    for (const chunk of [1, 2, 7, 10_000]) {
      const long = unit.repeat(700)
      const got: unknown = JSON.parse(
        filter(JSON.stringify({ a: long, b: [long], c: 1 }), 2, chunk),
      )
      assert.ok(typeof got === 'object' && got !== null && 'a' in got && 'c' in got && 'b' in got)
      assert.ok(typeof got.a === 'string' && got.a.length < 600 && got.a.length > 50)
      assert.ok(long.startsWith(got.a.slice(0, -1)), 'another text')
      assert.equal(got.c, 1)
    }
})

test('megabytes of tags and meta become a few bytes', () => {
  const services = { db: ['v1'], evil: Array.from({ length: 100_000 }, (_, i) => `tag${i}`) }
  assert.equal(filter(JSON.stringify(services), 1, 65_536), '{"db":[],"evil":[]}')
})
