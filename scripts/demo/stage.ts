/**
 * What the audience sees: numbered steps, notes below them, how long each took. Colors and running seconds
 * only on a terminal.
 */
import { styleText } from 'node:util'

const isTerminal = process.stdout.isTTY

/** Says something below the current step. */
export type Note = (text: string) => void

/** Prints the steps of a story that has `count` of them. */
export class Stage {
  private readonly count: number
  private current = 0
  private readonly startedAt = performance.now()

  constructor(count: number) {
    this.count = count
  }

  /** Announces a step, performs it, says how long it took. */
  async step<T>(title: string, perform: (note: Note) => Promise<T>): Promise<T> {
    this.current += 1
    console.log(`\n${paint('bold', `[${this.current}/${this.count}] ${title}`)}`)
    const startedAt = performance.now()
    const ticking = isTerminal ? showSeconds(startedAt) : undefined
    try {
      const result = await perform((text) => {
        ticking?.clear()
        for (const line of text.split('\n')) console.log(`      ${line}`)
      })
      ticking?.stop()
      console.log(paint('dim', `      ${seconds(performance.now() - startedAt)}`))
      return result
    } catch (error) {
      ticking?.stop()
      console.log(paint('red', '      failed'))
      throw error
    }
  }

  /** A table of two columns under a title, at the end. */
  summary(title: string, rows: readonly (readonly [string, string])[]): void {
    const width = Math.max(...rows.map(([label]) => label.length))
    console.log(`\n${paint('bold', title)} ${paint('dim', `(${this.elapsed()} in all)`)}`)
    for (const [label, value] of rows) console.log(`  ${label.padEnd(width)}  ${value}`)
  }

  private elapsed(): string {
    return seconds(performance.now() - this.startedAt)
  }
}

/** Text in a color, on a terminal. */
export function paint(style: Parameters<typeof styleText>[0], text: string): string {
  return isTerminal ? styleText(style, text) : text
}

function showSeconds(startedAt: number): { clear(): void; stop(): void } {
  const clear = (): void => {
    process.stdout.write('\r\u001b[K')
  }
  const timer = setInterval(() => {
    process.stdout.write(`\r      ${paint('dim', `${seconds(performance.now() - startedAt)} ...`)}`)
  }, 500)
  return {
    clear,
    stop: () => {
      clearInterval(timer)
      clear()
    },
  }
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}
