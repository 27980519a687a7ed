/**
 * What one user may do in a turn of the event loop. Turns are real ones, time is not.
 */
import assert from 'node:assert/strict'
import { describe, mock, test } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { noteRead } from '../../src/dataplane/io/turn.ts'
import {
  TURN_SHARE,
  TURN_SHARE_ALONE,
  TurnGroup,
  TurnShare,
} from '../../src/dataplane/io/turn-share.ts'

/** A fifth of a share. */
const PIECE = TURN_SHARE / 5

/** Notes what was done, and how much of it in one turn. */
class Diary {
  readonly done: string[] = []
  readonly perTurn: number[] = []
  private inThisTurn = 0

  /** Postpones `count` pieces of work. */
  plan(share: TurnShare, name: string, count: number, cost = PIECE): void {
    for (let i = 0; i < count; i += 1)
      share.postpone({
        cost,
        continueWork: () => {
          this.done.push(`${name}${i}`)
          this.inThisTurn += 1
        },
      })
  }

  /** Lets turns pass until so much has been done, and one more. */
  async until(count: number): Promise<void> {
    for (let turn = 0; this.done.length < count; turn += 1) {
      assert.ok(turn < 1_000, `${this.done.length} of ${count} were done`)
      await nextTurn()
      this.perTurn.push(this.inThisTurn)
      this.inThisTurn = 0
    }
  }
}

const immediates = (): number =>
  process.getActiveResourcesInfo().filter((name) => name === 'Immediate').length

test('within the share nothing is postponed, beyond it everything', () => {
  const share = new TurnShare()
  for (let i = 0; i < 5; i += 1) assert.equal(share.claim(PIECE), true)
  assert.equal(share.isSpent, true)
  assert.equal(share.claim(1), false)
  assert.equal(share.isOverspent, false)
})

test('who does little is not waited for: no immediate is made', () => {
  const before = immediates()
  const share = new TurnShare()
  for (let i = 0; i < 10; i += 1) share.spend(5_000)
  assert.equal(immediates(), before)
})

test('a turn does no more than a share, first come first served, and the next one goes on', async () => {
  const share = new TurnShare()
  const diary = new Diary()
  diary.plan(share, 'work', 23)
  await diary.until(23)
  assert.ok(Math.max(...diary.perTurn) <= 5, `${diary.perTurn.join(' ')} pieces a turn`)
  assert.deepEqual(
    diary.done,
    Array.from({ length: 23 }, (_, i) => `work${i}`),
  )
  assert.equal(share.postponed, 0)
  await nextTurn()
  assert.equal(share.isSpent, false)
})

test('one with endless work does not hold up another', async () => {
  const [hog, meek] = [new TurnShare(), new TurnShare()]
  const diary = new Diary()
  diary.plan(hog, 'hog', 500)
  diary.plan(meek, 'meek', 1)
  await diary.until(6)
  assert.ok(diary.done.indexOf('meek0') <= 5, diary.done.join(' '))
  await diary.until(501)
})

test('many of one group do no more in a turn than two users do', async () => {
  const group = new TurnGroup()
  const members = Array.from({ length: 20 }, () => new TurnShare(group))
  const diary = new Diary()
  for (const [i, member] of members.entries()) diary.plan(member, `member${i} `, 500, PIECE / 5)
  await diary.until(20 * 500)
  // What is begun is finished, so each does one piece more than fits; a turn without the group would see 500.
  const turns = diary.perTurn.slice(2, -1)
  assert.ok(turns.length > 0)
  assert.ok(Math.max(...turns) <= 50 + 20, `${turns.join(' ')} pieces a turn`)
  for (let turn = 0; turn < 100 && group.busy > 0; turn += 1) await nextTurn()
  assert.equal(group.busy, 0, 'what was spent is paid')
})

test('work that postpones itself goes on behind what waits already', async () => {
  const share = new TurnShare()
  const done: string[] = []
  let left = 3
  const again = {
    cost: PIECE,
    continueWork: () => {
      done.push('again')
      left -= 1
      if (left > 0) share.postpone(again)
    },
  }
  share.postpone(again)
  share.postpone({ cost: PIECE, continueWork: () => void done.push('other') })
  await nextTurn()
  await nextTurn()
  assert.deepEqual(done, ['again', 'other', 'again', 'again'])
})

describe('what was spent beyond the share', () => {
  test('is taken off the turns that follow', async () => {
    const share = new TurnShare()
    const diary = new Diary()
    share.spend(4 * TURN_SHARE)
    assert.equal(share.isOverspent, false)
    diary.plan(share, 'work', 1)
    await diary.until(1)
    assert.equal(diary.perTurn.length, 4)
  })

  test('is forgotten beyond a bound: nobody is held up for a second', async () => {
    const share = new TurnShare()
    const diary = new Diary()
    share.spend(100_000 * TURN_SHARE)
    assert.equal(share.isOverspent, true)
    diary.plan(share, 'work', 1)
    await diary.until(1)
    assert.ok(diary.perTurn.length <= 32, `${diary.perTurn.length} turns`)
  })
})

test('who has been alone for a second does more in a turn, until another comes', async (t) => {
  let nowMs = 1_000_000
  t.after(() => mock.restoreAll())
  mock.method(performance, 'now', () => nowMs)
  const [hog, meek] = [new TurnShare(), new TurnShare()]
  // A read is what tells the time.
  const pass = (): void => noteRead((nowMs += 2))
  const claims = async (): Promise<number> => {
    pass()
    hog.spend(TURN_SHARE)
    await nextTurn()
    pass()
    let count = 0
    while (hog.claim(TURN_SHARE)) count += 1
    // What is taken off later turns must not last until the next question.
    for (let turn = 0; turn < 40; turn += 1) await nextTurn()
    return count
  }
  meek.spend(1)
  assert.equal(await claims(), 1)
  nowMs += 1_001
  assert.equal(await claims(), TURN_SHARE_ALONE / TURN_SHARE)
  meek.spend(1)
  assert.equal(await claims(), 1)
})

test('little by little for long is no heap: what a millisecond ago was done is over', async (t) => {
  let nowMs = 2_000_000
  t.after(() => mock.restoreAll())
  mock.method(performance, 'now', () => nowMs)
  const share = new TurnShare()
  const made = mock.method(globalThis, 'setImmediate')
  for (let i = 0; i < 100; i += 1) {
    nowMs += 1
    noteRead(nowMs)
    assert.equal(share.spend(TURN_SHARE / 4), false)
  }
  assert.equal(made.mock.callCount(), 0)
  share.spend(TURN_SHARE)
  assert.equal(share.isSpent, true)
  assert.equal(made.mock.callCount(), 1)
  await nextTurn()
})

test('a promise for later is kept in its turn', async () => {
  const share = new TurnShare()
  share.spend(TURN_SHARE)
  let isOver = false
  const waits = share.later(PIECE).then(() => {
    isOver = true
  })
  await Promise.resolve()
  assert.equal(isOver, false)
  await waits
})
