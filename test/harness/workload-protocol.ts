/**
 * What a test asks of a service process (services/workload.ts) and what it answers, over Node's channel
 * between parent and child.
 */

/** What a listening service does with a connection by itself. `manual` hands it to the test. */
export type Behavior = 'echo' | 'manual' | 'endless'

type Operation =
  | {
      readonly op: 'listen'
      readonly address: string
      readonly port: number
      readonly behavior: Behavior
    }
  | { readonly op: 'unlisten' }
  | { readonly op: 'dial'; readonly ip: string; readonly port: number }
  | { readonly op: 'read'; readonly connection: number; readonly count: number }
  | { readonly op: 'readLine' | 'readRest' | 'end' | 'reset'; readonly connection: number }
  | { readonly op: 'write'; readonly connection: number; readonly bytes: Uint8Array }
  | {
      readonly op: 'writePattern'
      readonly connection: number
      readonly total: number
      readonly chunkBytes: number
      readonly stallMs: number
    }
  | { readonly op: 'closeAll' }

/** One thing asked for; every request gets exactly one {@link Reply} with its `id`. */
export type Request = Operation & { readonly id: number }

/** A request before it is numbered. */
export type Ask = Operation

/** The answer to a request. */
export type Reply =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly error: { readonly code: string; readonly message: string } }

/** What a service process says unasked. */
export type WorkloadEvent =
  | { readonly event: 'ready' }
  | { readonly event: 'accepted'; readonly connection: number; readonly port: number }

/** What {@link Behavior} `echo` answers first: who it is, and the line it was sent. */
export interface Answer {
  readonly service: string
  readonly instance: string
  readonly nonce: string
  /** The address that the service saw as its caller. */
  readonly from: string
}

/** Everything that was read to the end of a connection. `ending` is `end`, or an error's code. */
export interface Rest {
  readonly bytes: number
  readonly sha256: string
  readonly ending: string
  /** The last 4 KiB, one character a byte. */
  readonly tail: string
}

/** What was sent of a pattern. */
export interface Sent {
  readonly bytes: number
  readonly sha256: string
  /** Given up because the other side took no more; everything in `bytes` is still on its way. */
  readonly stalled: boolean
}
