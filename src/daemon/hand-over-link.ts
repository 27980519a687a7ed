/**
 * The link between the daemon that hands over and the daemon that takes over: one JSON value per line over a socket
 * pair. It stays open until the predecessor has ended.
 */
import { spawn } from 'node:child_process'
import { Socket } from 'node:net'
import { describeError, errorCode } from '../lib/errors.ts'
import type { SystemdEnvironment } from '../lib/systemd.ts'
import type { Successor } from './hand-over.ts'

/** A message on the link. */
export type LinkMessage =
  /** From the predecessor: what it waits for itself, and how often this host was reloaded. */
  | { readonly kind: 'hello'; readonly awaited: readonly string[]; readonly reloads: number }
  | { readonly kind: 'takeOver' }
  /** From the predecessor: the successor is systemd's main process from now on. */
  | { readonly kind: 'main' }
  /** From the predecessor: the hand-over is cancelled, and it takes everything back once the successor has ended. */
  | { readonly kind: 'cancelled' }
  /** From the predecessor: the number of its open connections. */
  | { readonly kind: 'draining'; readonly connections: number }
  /** From the successor, like the next three. */
  | { readonly kind: 'started'; readonly pid: number }
  | { readonly kind: 'prepared' }
  | { readonly kind: 'serving' }
  | { readonly kind: 'failed'; readonly reason: string }
  /** From the predecessor: records that the successor is to deliver, src/daemon/reports/kept-reports.ts. */
  | { readonly kind: 'reports'; readonly kept: unknown }
  /** How many replaced processes may continue, the receiver included: too many reloads end the oldest. */
  | { readonly kind: 'mayGoOn'; readonly processes: number }
  /** The host stops: open connections may continue for this time. */
  | { readonly kind: 'end'; readonly deadlineMs: number }

/** Name of the link's descriptor among those that a successor is started with. */
export const LINK_NAME = 'hand-over'

/** One end of the link. */
export class Link implements Disposable {
  readonly #socket: Socket
  readonly #listeners = new Set<(message: LinkMessage | 'closed') => void>()
  readonly #heard: LinkMessage[] = []
  #unread = ''
  #isClosed = false

  constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8')
    socket.on('error', () => undefined)
    socket.on('data', (chunk) => this.#read(String(chunk)))
    socket.on('close', () => {
      this.#isClosed = true
      for (const listener of this.#listeners) listener('closed')
    })
  }

  /** The end that a successor was started with. */
  static of(fd: number): Link {
    return new Link(new Socket({ fd, readable: true, writable: true }))
  }

  /** Sends a message; does nothing when the other process has ended. */
  send(message: LinkMessage): void {
    if (!this.#isClosed) this.#socket.write(`${JSON.stringify(message)}\n`)
  }

  /** Calls `listener` with all messages, earlier ones too (but not `draining` and `reports`); `closed` comes last. */
  listen(listener: (message: LinkMessage | 'closed') => void): void {
    this.#listeners.add(listener)
    for (const message of this.#heard) listener(message)
    if (this.#isClosed) listener('closed')
  }

  /** Whether the other process has ended. */
  get isClosed(): boolean {
    return this.#isClosed
  }

  /** The first message of these kinds, received already or later. @throws when the other process fails or ends first */
  next<K extends LinkMessage['kind']>(...kinds: K[]): Promise<Extract<LinkMessage, { kind: K }>> {
    return new Promise((resolve, reject) => {
      this.listen((message) => {
        if (message === 'closed') reject(new Error('the other process has ended'))
        else if (isOfKind(message, kinds)) resolve(message)
        else if (message.kind === 'failed') reject(new Error(message.reason))
      })
    })
  }

  /** Resolves when the other process has ended. */
  get closed(): Promise<void> {
    return new Promise((resolve) => {
      this.listen((message) => {
        if (message === 'closed') resolve()
      })
    })
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }

  #read(text: string): void {
    const lines = (this.#unread + text).split('\n')
    this.#unread = lines.pop() ?? ''
    for (const line of lines) {
      const message: unknown = JSON.parse(line)
      if (!isMessage(message)) continue
      if (!isPassing(message)) this.#heard.push(message)
      for (const listener of this.#listeners) listener(message)
    }
  }
}

/** Whether a message matters only to who listens when it comes. */
function isPassing({ kind }: LinkMessage): boolean {
  return kind === 'draining' || kind === 'reports'
}

/** Options of a successor. */
export interface SuccessorOptions {
  /** The program and its arguments. */
  readonly command: readonly string[]
  /** Listening sockets, by name. */
  readonly sockets: ReadonlyMap<string, number>
  readonly environment: SystemdEnvironment
  readonly hello: Extract<LinkMessage, { readonly kind: 'hello' }>
}

/**
 * Starts a process that is not a child of this one but of process 1 (or of a subreaper), so that the service manager
 * notices its end. The inner shell keeps its process ID when it becomes the program, and sends it over the link: so a
 * program that hangs before it can send anything can be ended, too.
 */
const LAUNCH = `sh -c 'export LISTEN_PID=$$; echo "{\\"kind\\":\\"started\\",\\"pid\\":$$}" >&3; exec "$@"' sh "$@" &`

/** How long a failed successor may take to end by itself. Milliseconds. */
const END_MS = 3_000

/** Starts a successor. */
export function startSuccessor(options: SuccessorOptions): Successor & { readonly link: Link } {
  const { command, sockets, environment, hello } = options
  const variables = {
    NOTIFY_SOCKET: environment.NOTIFY_SOCKET,
    WATCHDOG_USEC: environment.WATCHDOG_USEC,
    RUNTIME_DIRECTORY: environment.RUNTIME_DIRECTORY,
    LISTEN_FDS: String(1 + sockets.size),
    LISTEN_FDNAMES: [LINK_NAME, ...sockets.keys()].join(':'),
  }
  const assigned = Object.entries(variables).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  )
  const launcher = spawn('sh', ['-c', LAUNCH, 'sh', 'env', ...assigned, ...command], {
    detached: true,
    stdio: ['ignore', 'inherit', 'inherit', 'pipe', ...sockets.values()],
  })
  launcher.on('error', () => undefined)
  const pipe: unknown = launcher.stdio[3]
  if (!(pipe instanceof Socket)) throw new Error('a socket pair could not be made')
  const link = new Link(pipe)
  link.send(hello)
  let pid: number | undefined
  link.listen((message) => {
    if (message !== 'closed' && message.kind === 'started') pid = message.pid
  })
  return {
    link,
    prepared: async () => {
      await link.next('prepared')
      if (pid === undefined) throw new Error('the new process did not say its number')
      return { pid }
    },
    takeOver: async () => {
      const serving = link.next('serving')
      link.send({ kind: 'takeOver' })
      await serving
    },
    end: async () => {
      link.send({ kind: 'cancelled' })
      // Also the signal, for a program that does not read the link yet, or hangs.
      if (pid !== undefined) signal(pid, 'SIGTERM')
      const timer = setTimeout(() => {
        if (pid !== undefined) signal(pid, 'SIGKILL')
        link[Symbol.dispose]()
      }, END_MS)
      await link.closed
      clearTimeout(timer)
      link[Symbol.dispose]()
    },
  }
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch (error) {
    if (errorCode(error) !== 'ESRCH') throw new Error(describeError(error), { cause: error })
  }
}

function isMessage(value: unknown): value is LinkMessage {
  return typeof value === 'object' && value !== null && 'kind' in value
}

function isOfKind<K extends LinkMessage['kind']>(
  message: LinkMessage,
  kinds: readonly K[],
): message is Extract<LinkMessage, { kind: K }> {
  return kinds.some((kind) => message.kind === kind)
}
