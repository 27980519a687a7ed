/**
 * A byte stream that only remembers what was asked of it.
 */
import { type ByteStream, IdleReceiver, type Receiver } from '../../src/dataplane/io/byte-stream.ts'

/** Answers each write with {@link answer}. */
export class FakeStream implements ByteStream {
  receiver: Receiver = new IdleReceiver()
  isClosed = false
  answer = 0
  readonly asked: string[] = []
  readonly given: Uint8Array[] = []

  write(bytes: Uint8Array): number {
    this.asked.push(`write ${Buffer.from(bytes).toString()}`)
    this.given.push(bytes)
    return this.answer
  }

  end(): void {
    this.asked.push('end')
  }

  reset(): void {
    this.asked.push('reset')
    this.isClosed = true
  }

  pause(): void {
    this.asked.push('pause')
  }

  resume(): void {
    this.asked.push('resume')
  }

  /** What was asked since the last look. */
  look(): string[] {
    return this.asked.splice(0)
  }
}
