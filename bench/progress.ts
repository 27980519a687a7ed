/**
 * What is shown while a run goes on: one line that changes on a terminal, one line a sample elsewhere.
 */
import { formatDuration } from './report/text.ts'

/** Keeps count of the planned work and says how much is left. Writes to standard error. */
export class Progress {
  readonly #totalSeconds: number
  readonly #totalSteps: number
  readonly #startedAt = performance.now()
  readonly #onTerminal = process.stderr.isTTY
  #doneSeconds = 0
  #doneSteps = 0

  constructor(totalSteps: number, totalSeconds: number) {
    this.#totalSteps = totalSteps
    this.#totalSeconds = totalSeconds
  }

  /** Says what comes next. */
  next(what: string): void {
    const line = `[${String(this.#doneSteps + 1).padStart(String(this.#totalSteps).length)}/${this.#totalSteps}] ${this.#left()} left  ${what}`
    process.stderr.write(this.#onTerminal ? `\r\u001b[K${line}` : `${line}\n`)
  }

  /** One step is done that was planned to take `seconds`. */
  done(seconds: number): void {
    this.#doneSteps += 1
    this.#doneSeconds += seconds
  }

  /** Takes the changing line away before something else is printed. */
  clear(): void {
    if (this.#onTerminal) process.stderr.write('\r\u001b[K')
  }

  #left(): string {
    const elapsed = (performance.now() - this.#startedAt) / 1000
    // The plan knows the proportions; what has passed knows how fast this machine is.
    const pace = this.#doneSeconds < 10 ? 1 : elapsed / this.#doneSeconds
    return formatDuration((this.#totalSeconds - this.#doneSeconds) * pace)
  }
}
