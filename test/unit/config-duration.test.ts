/** Claims about src/lib/duration.ts and src/lib/closest-word.ts, which configuration errors are made of. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import * as fc from 'fast-check'
import { closestWord } from '../../src/lib/closest-word.ts'
import { formatDuration, MAX_DURATION_MS, parseDuration } from '../../src/lib/duration.ts'

test('a duration that was formatted is read back exactly', () => {
  fc.assert(
    fc.property(fc.nat({ max: MAX_DURATION_MS }), (ms) => {
      assert.equal(parseDuration(formatDuration(ms)), ms)
    }),
  )
})

test('units add up and come in any order', () => {
  assert.equal(parseDuration('1d2h3m4s5ms'), 93_784_005)
  assert.equal(parseDuration('5ms1s'), 1_005)
  assert.equal(formatDuration(93_784_005), '1d2h3m4s5ms')
  assert.equal(parseDuration('365d'), MAX_DURATION_MS)
})

test('what has no unit, a sign, a fraction, a space or more than a year is no duration', () => {
  for (const text of [
    '',
    '5',
    's',
    '-5s',
    '+5s',
    '1.5s',
    '5 s',
    ' 5s',
    '5s ',
    '5S',
    '5us',
    '366d',
    '1e3s',
    '9'.repeat(400) + 's',
  ])
    assert.equal(parseDuration(text), undefined, text)
})

test('reading a long text takes no time', () => {
  const startedAt = performance.now()
  assert.equal(parseDuration('1s'.repeat(500_000)), undefined)
  assert.ok(performance.now() - startedAt < 500)
})

const known = ['bindPort', 'bindAddress', 'destination', 'off', 'on']

test('one slip of the fingers still finds the word that was meant', () => {
  for (const [typed, meant] of [
    ['bindport', 'bindPort'],
    ['bindPrt', 'bindPort'],
    ['bnidPort', 'bindPort'],
    ['bindPortt', 'bindPort'],
    ['destnation', 'destination'],
    ['onn', 'on'],
    ['of', 'off'],
  ])
    assert.equal(closestWord(typed ?? '', known), meant)
})

test('a word unlike all others suggests nothing', () => {
  for (const typed of ['', 'zzzzzz', 'workload', 'x'.repeat(10_000)])
    assert.equal(closestWord(typed, known), undefined, typed)
})
