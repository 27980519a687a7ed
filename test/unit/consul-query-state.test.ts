/**
 * Claims about index and pace of a blocking query, on a clock that stands where it is put.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  firstQuery,
  nextQuery,
  parseIndex,
  type QueryOutcome,
  type QueryState,
  waitSeconds,
} from '../../src/controlplane/catalog/consul/query-state.ts'

const noJitter = (): number => 0

function answer(index: string | undefined, changed = true): QueryOutcome {
  return { kind: 'answer', index, changed, mayBlock: true, tookMs: 1 }
}

/** Runs outcomes one after the other, each `tookMs` after the wait before it; the requests' times. */
function play(outcome: (state: QueryState, request: number) => QueryOutcome, requests: number) {
  let nowMs = 0
  let state = firstQuery(nowMs, noJitter)
  const sentAtMs: number[] = []
  for (let request = 0; request < requests; request += 1) {
    sentAtMs.push(nowMs)
    const next = nextQuery(state, outcome(state, request), nowMs, noJitter)
    state = next.state
    nowMs += next.delayMs
  }
  return { sentAtMs, state }
}

test('the first request carries index 0 and the next one the index of the answer', () => {
  const first = firstQuery(0, noJitter)
  assert.equal(first.index, 0n)
  const next = nextQuery(first, answer('42'), 0, noJitter)
  assert.equal(next.state.index, 42n)
  assert.equal(next.delayMs, 0)
})

test('an index that goes backwards starts over at 0', () => {
  const at100 = nextQuery(firstQuery(0, noJitter), answer('100'), 0, noJitter).state
  assert.equal(nextQuery(at100, answer('5'), 10, noJitter).state.index, 0n)
})

test('an index of 0 counts as 1, so that the next request can block', () => {
  assert.equal(parseIndex('0'), 1n)
})

test('an index that is no single number below 2^64 is no index', () => {
  for (const raw of [
    undefined,
    '',
    'abc',
    '-5',
    '1.5',
    '5, 6',
    '1e3',
    '18446744073709551616',
    '0x10',
  ])
    assert.equal(parseIndex(raw), undefined, String(raw))
  assert.equal(parseIndex('18446744073709551615'), 2n ** 64n - 1n)
})

test('without a usable index the watch polls, seconds apart', () => {
  const next = nextQuery(firstQuery(0, noJitter), answer('abc'), 0, noJitter)
  assert.equal(next.state.index, 0n)
  assert.ok(next.delayMs >= 2_000 && next.delayMs <= 5_000, String(next.delayMs))
})

test('after any failure the next request starts over at 0', () => {
  const at100 = nextQuery(firstQuery(0, noJitter), answer('100'), 0, noJitter).state
  for (const kind of ['unreachable', 'refused', 'limited', 'forbidden'] as const)
    assert.equal(nextQuery(at100, { kind }, 0, noJitter).state.index, 0n, kind)
})

test('failures back off between half a second and thirty, and a good answer forgets them', () => {
  let state = firstQuery(0, noJitter)
  const worst: number[] = []
  for (let failure = 0; failure < 12; failure += 1) {
    const luckless = nextQuery(state, { kind: 'refused' }, 0, () => 0.999_999)
    const lucky = nextQuery(state, { kind: 'refused' }, 0, noJitter)
    assert.equal(lucky.delayMs, 500)
    worst.push(Math.round(luckless.delayMs))
    state = luckless.state
  }
  assert.deepEqual(worst.slice(0, 4), [1_000, 2_000, 4_000, 8_000])
  assert.equal(worst.at(-1), 30_000)
  assert.equal(nextQuery(state, answer('1'), 0, noJitter).state.failures, 0)
})

test('a refused right is tried again slowly', () => {
  const { delayMs } = nextQuery(firstQuery(0, noJitter), { kind: 'forbidden' }, 0, noJitter)
  assert.ok(delayMs >= 5_000)
})

test('a server that answers at once with the same body gets one request in five seconds', () => {
  const { sentAtMs } = play(() => answer('7', false), 40)
  const last = sentAtMs.slice(-5)
  for (let i = 1; i < last.length; i += 1) assert.equal((last[i] ?? 0) - (last[i - 1] ?? 0), 5_000)
})

test('a server that changes with every answer gets one request a second after its first four', () => {
  const { sentAtMs } = play((_, request) => answer(String(request + 1)), 30)
  assert.deepEqual(sentAtMs.slice(0, 6), [0, 0, 0, 0, 1_000, 2_000])
  assert.equal(sentAtMs.at(-1), 26_000)
})

test('an index that jumps up and down gets no more than one request a second', () => {
  const { sentAtMs } = play((_, request) => answer(request % 2 === 0 ? '100' : '5'), 30)
  assert.ok((sentAtMs.at(-1) ?? 0) >= 26_000)
})

test('waits that time out without news never slow a watch down', () => {
  let state = nextQuery(firstQuery(0, noJitter), answer('7'), 0, noJitter).state
  for (let round = 1; round < 20; round += 1) {
    const outcome: QueryOutcome = {
      kind: 'answer',
      index: '7',
      changed: false,
      mayBlock: true,
      tookMs: 50_000,
    }
    const next = nextQuery(state, outcome, round * 50_000, noJitter)
    assert.equal(next.delayMs, 0)
    state = next.state
  }
})

test('every few minutes the index is thrown away although all is well', () => {
  const state = nextQuery(firstQuery(0, noJitter), answer('7'), 0, noJitter).state
  assert.equal(nextQuery(state, answer('8'), 100_000, noJitter).state.index, 8n)
  const restarted = nextQuery(state, answer('8'), 400_000, noJitter).state
  assert.equal(restarted.index, 0n)
  assert.equal(nextQuery(restarted, answer('8'), 400_001, noJitter).state.index, 8n)
})

test('a watch without a connection of its own polls, up to ten seconds apart', () => {
  const outcome: QueryOutcome = {
    kind: 'answer',
    index: '7',
    changed: true,
    mayBlock: false,
    tookMs: 1,
  }
  const { delayMs } = nextQuery(firstQuery(0, noJitter), outcome, 0, noJitter)
  assert.ok(delayMs >= 5_000 && delayMs <= 10_000, String(delayMs))
})

test('the wait stays between 45 and 55 seconds', () => {
  assert.equal(waitSeconds(noJitter), 45)
  assert.equal(
    waitSeconds(() => 0.999_999),
    55,
  )
})
