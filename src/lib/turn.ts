/**
 * Work that is worth doing once per turn of the event loop instead of once per event: flushing what the
 * turn's reads have collected. One immediate per turn, however much work there is.
 */

/** Something with pending work; each registers itself at most once a turn. */
export interface TurnTask {
  /** Runs in the check phase, after all sockets that were readable in this turn have been read. */
  endOfTurn(): void
}

let tasks: TurnTask[] = []
let running: TurnTask[] = []

/** Calls `task.endOfTurn()` at the end of the current turn. The caller keeps itself from registering twice. */
export function atEndOfTurn(task: TurnTask): void {
  if (tasks.length === 0) setImmediate(runTasks)
  tasks.push(task)
}

function runTasks(): void {
  const due = tasks
  tasks = running
  running = due
  // Tasks registered while these run belong to the next turn.
  for (let i = 0; i < due.length; i += 1) due[i]?.endOfTurn()
  due.length = 0
}
