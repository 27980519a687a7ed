/**
 * How much memory a daemon has while something is done to it: looked at again and again, the most is remembered.
 */
import type { Daemon } from './daemon.ts'

const EVERY_MS = 50

/** Begins with its making. Disposing it ends the watch; what it has seen stays. */
export class MemoryWatch implements Disposable {
  readonly beforeMiB: number
  private readonly daemon: Daemon
  private readonly timer: NodeJS.Timeout
  private highestMiB: number

  constructor(daemon: Daemon) {
    this.daemon = daemon
    this.beforeMiB = daemon.residentMiB
    this.highestMiB = this.beforeMiB
    this.timer = setInterval(() => this.look(), EVERY_MS)
  }

  get grownMiB(): number {
    return this.highestMiB - this.beforeMiB
  }

  /** For a report: `80 -> 95 MiB`. */
  get course(): string {
    return `${this.beforeMiB.toFixed(0)} -> ${this.highestMiB.toFixed(0)} MiB`
  }

  [Symbol.dispose](): void {
    clearInterval(this.timer)
  }

  private look(): void {
    this.highestMiB = Math.max(this.highestMiB, this.daemon.residentMiB)
  }
}
