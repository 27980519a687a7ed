/**
 * Ages, sizes and round trips as the tables print them.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  formatAge,
  formatBytes,
  formatRoundTrip,
  formatSince,
} from '../../src/cli/render/format.ts'

const SECOND = 1_000
const MINUTE = 60 * SECOND
const HOUR = 60 * MINUTE
const DAY = 24 * HOUR

test('an age has the one or two units that matter', () => {
  const expected: [number, string][] = [
    [-5, '0s'],
    [999, '0s'],
    [7 * SECOND, '7s'],
    [119 * SECOND, '119s'],
    [2 * MINUTE, '2m'],
    [3 * MINUTE + 5 * SECOND, '3m5s'],
    [12 * MINUTE + 59 * SECOND, '12m'],
    [HOUR - 1, '59m'],
    [HOUR, '1h'],
    [2 * HOUR + 5 * MINUTE, '2h5m'],
    [30 * HOUR, '30h'],
    [3 * DAY + 4 * HOUR, '3d4h'],
    [12 * DAY + 4 * HOUR, '12d'],
  ]
  for (const [ms, text] of expected) assert.equal(formatAge(ms), text)
})

test('the time since something unreadable is a question mark', () => {
  assert.equal(formatSince('2026-01-01T00:00:00Z', Date.parse('2026-01-01T00:01:05Z')), '65s')
  assert.equal(formatSince('yesterday', 0), '?')
})

test('a size never needs more than four digits', () => {
  const expected: [number, string][] = [
    [0, '0B'],
    [1_023, '1023B'],
    [1_024, '1.0KiB'],
    [1_536, '1.5KiB'],
    [10 * 1_024, '10KiB'],
    [1_024 * 1_024 - 1, '1.0MiB'],
    [20 * 1_024 * 1_024, '20MiB'],
    [3 * 2 ** 40, '3.0TiB'],
  ]
  for (const [bytes, text] of expected) assert.equal(formatBytes(bytes), text)
})

test('a round trip below ten milliseconds has a tenth', () => {
  assert.equal(formatRoundTrip(0.23), '0.2ms')
  assert.equal(formatRoundTrip(9.96), '10ms')
  assert.equal(formatRoundTrip(140.2), '140ms')
})
