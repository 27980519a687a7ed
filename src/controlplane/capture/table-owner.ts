/**
 * The nft process that owns the tables that no other program can flush: one process for all tables, controlled by its
 * standard input.
 *
 * A table with an owner (`flags owner`) can be changed only by the program that created it, while it runs. The
 * tables disappear with this process, whatever ends it.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { TOOL_ENVIRONMENT } from './command.ts'

/** Starts an nft that reads commands, one transaction in each line. */
export type StartNft = () => ChildProcess

/** Starts nft in this process's network namespace, detached from signals to its group: it ends when its input ends. */
function startNft(): ChildProcess {
  return spawn('nft', ['-i'], {
    detached: true,
    env: TOOL_ENVIRONMENT,
    stdio: ['pipe', 'ignore', 'pipe'],
  })
}

/** nft keeps every input line in its history: after this many bytes another nft replaces it. */
const MAX_SENT_BYTES = 2 * 1024 * 1024

/** Characters of nft's error output that are kept for the log. */
const MOST_WORDS = 500

/** A replaced nft keeps its tables until its successor has certainly created its own. Milliseconds. */
const HANDOVER_MS = 5_000

/** The input of one nft. */
export interface OwnerLink {
  /** Suffix for the names of tables, because those of the predecessor may still exist. */
  readonly suffix: string
  /** Runs one line of a change. */
  write(line: string): void
  /** Runs one line that a successor would need as well; it does not count towards a replacement. */
  fill(line: string): void
}

/** A user of the nft process. */
export interface OwnedTable {
  /** The nft has ended, and the tables with it. */
  onEnd(why: string): void
  /** Another nft takes over. */
  onReplaced(link: OwnerLink): void
}

interface Running {
  readonly child: ChildProcess
  readonly link: OwnerLink
}

/** Starts the nft when there is a table to own, and ends it when there is none. */
export class TableOwner {
  readonly #start: StartNft
  readonly #tables = new Set<OwnedTable>()
  #current: Running | undefined
  #sentBytes = 0
  #started = 0

  constructor(start: StartNft = startNft) {
    this.#start = start
  }

  /** Whether nft has received so many changes that {@link replace} is due. */
  get mustBeReplaced(): boolean {
    return this.#sentBytes > MAX_SENT_BYTES
  }

  /** The nft for a table, valid until {@link OwnedTable.onEnd} or {@link release}. */
  acquire(table: OwnedTable): OwnerLink {
    this.#tables.add(table)
    return (this.#current ?? this.#begin()).link
  }

  /** Unregisters a table that its user has removed already. */
  release(table: OwnedTable): void {
    this.#tables.delete(table)
    if (this.#tables.size > 0) return
    const child = this.#current?.child
    this.#current = undefined
    child?.stdin?.end()
  }

  /** Starts another nft, and moves all tables to it. */
  replace(): void {
    const old = this.#current?.child
    if (old === undefined) return
    const { link } = this.#begin()
    for (const table of this.#tables) table.onReplaced(link)
    setTimeout(() => old.stdin?.end(), HANDOVER_MS).unref()
  }

  #begin(): Running {
    const child = this.#start()
    this.#started += 1
    this.#sentBytes = 0
    const fill = (line: string): void => {
      child.stdin?.write(`${line}\n`)
    }
    const link: OwnerLink = {
      suffix: this.#started === 1 ? '' : `_${this.#started}`,
      fill,
      write: (line) => {
        this.#sentBytes += line.length
        fill(line)
      },
    }
    const current = { child, link }
    this.#current = current
    let words = ''
    const end = (why: string): void => {
      if (this.#current !== current) return
      this.#current = undefined
      child.stdin?.end()
      for (const table of this.#tables) table.onEnd(why)
    }
    child.stdin?.on('error', () => undefined)
    child.stderr?.on('data', (chunk: Buffer) => {
      words = (words + chunk.toString('utf8')).slice(0, MOST_WORDS)
      if (/error/i.test(words)) end(words.trim().split('\n')[0] ?? '')
    })
    child.on('error', (error) => end(error.message))
    child.on('exit', (code, signal) => end(`nft has ended: ${code ?? signal}`))
    child.unref()
    return current
  }
}
