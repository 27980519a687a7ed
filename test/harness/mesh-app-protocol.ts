/**
 * What a test asks of an application process (services/mesh-app.ts), and what it answers.
 */

/** Where and how to call. */
export interface Target {
  readonly protocol: 'tcp' | 'http' | 'http2' | 'grpc'
  readonly ip: string
  readonly port: number
}

/** One thing to do. */
export type AppAsk =
  | { readonly op: 'serve'; readonly protocol: Target['protocol']; readonly port: number }
  /** Before it answers, it calls there itself. */
  | { readonly op: 'relay'; readonly target: Target }
  | { readonly op: 'call'; readonly target: Target }
  | {
      readonly op: 'load'
      readonly load: string
      readonly target: Target
      readonly concurrency: number
    }
  | { readonly op: 'move'; readonly load: string; readonly port: number }
  | { readonly op: 'stats'; readonly load: string }
  | { readonly op: 'stop'; readonly load: string }

/** The answer to the ask with this id. */
export type AppReply =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly error: string }

/** What came of a load so far. */
export interface LoadReport {
  answered: number
  failed: number
  /** The first failures, one sentence each. */
  readonly failures: string[]
  /** How many answers each service gave, by its name; a relay's is `name>name`. */
  readonly byAnswer: Record<string, number>
}
