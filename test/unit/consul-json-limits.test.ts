/**
 * Claims about the limits on JSON that is still arriving.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createJsonLimiter, MAX_VALUES } from '../../src/controlplane/catalog/consul/json-limits.ts'
import { errorCode } from '../../src/lib/errors.ts'

function push(text: string, chunk: number = text.length, bytes = 1_000, depth = 4): void {
  const limiter = createJsonLimiter(bytes, depth)
  for (let start = 0; start < text.length; start += chunk)
    limiter.push(Buffer.from(text.slice(start, start + chunk)))
}

test('nesting is counted across chunk boundaries', () => {
  for (const chunk of [1, 2, 3, 100]) {
    push('[[[[]]],[[[]]]]', chunk)
    assert.throws(
      () => push('[[[[[]]]]]', chunk),
      (error) => errorCode(error) === 'HM_CONSUL_ANSWER_TOO_DEEP',
    )
  }
})

test('brackets inside strings do not count, escaped quotes do not end them', () => {
  for (const chunk of [1, 2, 3, 100])
    push(String.raw`["[[[[[[","\"[[[[[[\\",{"{{{{{":"\\\"[[[["}]`, chunk)
})

test('length is limited', () => {
  assert.throws(
    () => push(`"${'x'.repeat(1_000)}"`, 100),
    (error) => errorCode(error) === 'HM_CONSUL_ANSWER_TOO_LARGE',
  )
})

test('the number of values is limited, whatever they are, and commas in text are none', () => {
  const text = (element: string): Buffer =>
    Buffer.from(`[${Array.from({ length: MAX_VALUES + 1 }, () => element).join(',')}]`)
  for (const element of ['0', '[]', '{}', '""'])
    assert.throws(() => createJsonLimiter().push(text(element)), /holds more than 1000000 values/)
  createJsonLimiter().push(Buffer.from(`"${','.repeat(MAX_VALUES * 2)}"`))
})

test('ten thousand levels are refused after the first few bytes', () => {
  const limiter = createJsonLimiter()
  assert.throws(() => limiter.push(Buffer.alloc(33, '[')))
})
