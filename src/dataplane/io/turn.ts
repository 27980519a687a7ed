/**
 * Runs work once per turn of the event loop instead of once per event: flushing what the turn's reads have collected.
 * One immediate per turn, for any amount of work.
 *
 * While the loop is quiet (reads come one by one) there is nothing to collect, and an immediate for each costs a single
 * request a fifth of its CPU time: then {@link scheduleEarly} runs the task right after the event.
 */

/** A task with pending work; each registers itself at most once a turn. */
export interface TurnTask {
  /** Does the work. Runs after all readable sockets of this turn have been read, or earlier: {@link scheduleEarly}. */
  endOfTurn(): void
}

/** Mean time between reads above which the loop counts as quiet, milliseconds: 33,000 reads a second. */
const QUIET_GAP_MS = 0.03

/** Longer gaps count as this: a pause of a second is not a thousand times quieter than one of 1 ms. */
const MAX_GAP_MS = 1

/** Weight of the newest gap in the mean. */
const NEWEST_SHARE = 1 / 16

let tasks: TurnTask[] = []
let running: TurnTask[] = []
let early: TurnTask[] = []
let lastReadMs = 0
let meanGapMs = MAX_GAP_MS

/** Records that a socket was read at `nowMs`, monotonic. */
export function noteRead(nowMs: number): void {
  meanGapMs += (Math.min(nowMs - lastReadMs, MAX_GAP_MS) - meanGapMs) * NEWEST_SHARE
  lastReadMs = nowMs
}

/** When a socket was last read, monotonic milliseconds: a clock without cost for code that a read calls. */
export function lastReadAtMs(): number {
  return lastReadMs
}

/** Calls `task.endOfTurn()` at the end of the current turn. The caller avoids a second registration. */
export function atEndOfTurn(task: TurnTask): void {
  if (tasks.length === 0) setImmediate(runTasks)
  tasks.push(task)
}

/** Calls it right after the current event when the loop is quiet; otherwise at the end of the turn. */
export function scheduleEarly(task: TurnTask): void {
  if (meanGapMs <= QUIET_GAP_MS) {
    atEndOfTurn(task)
    return
  }
  if (early.length === 0) process.nextTick(runEarly)
  early.push(task)
}

function runEarly(): void {
  const due = early
  early = []
  for (const task of due) task.endOfTurn()
}

function runTasks(): void {
  const due = tasks
  tasks = running
  running = due
  // Tasks registered while these run belong to the next turn.
  for (const task of due) task.endOfTurn()
  due.length = 0
}
