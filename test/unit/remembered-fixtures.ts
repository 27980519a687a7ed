/**
 * A state file in memory, for tests of what is remembered: what one run saves, the next one finds.
 */
import type { StateFile } from '../../src/lib/state-file.ts'

/** Stands for one file on disk across several runs. */
export class FakeDisk {
  text: string | undefined
  writtenAtMs = 0
  rejected: string | undefined
  private pending: (() => string) | undefined

  /** The file as a run that starts now finds it. */
  open(): StateFile {
    const body: unknown = this.text === undefined ? undefined : JSON.parse(this.text)
    return {
      stored: body === undefined ? undefined : { body, writtenAtMs: this.writtenAtMs },
      save: (render) => {
        this.pending = render
      },
      remove: async () => undefined,
      hold: () => undefined,
      reject: (reason) => {
        this.rejected = reason
      },
      problem: () => undefined,
      [Symbol.asyncDispose]: async () => this.write(),
    }
  }

  /** What a real file does by itself a moment later. */
  write(): void {
    if (this.pending !== undefined) this.text = this.pending()
    this.pending = undefined
  }
}
