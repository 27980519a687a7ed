/**
 * The nft that owns the tables which nobody else can flush: one process for all of them, whose input we hold.
 *
 * A table with an owner (`flags owner`) is left alone by everybody but the program that made it, for as long as that runs. It
 * goes with this process, whatever ends it.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { TOOL_ENVIRONMENT } from './command.ts'

/** Starts an nft that reads commands, one transaction a line. */
export type StartNft = () => ChildProcess

/** Starts nft in the network namespace of this process, out of reach of signals to its group: it ends with its input. */
function startNft(): ChildProcess {
  return spawn('nft', ['-i'], {
    detached: true,
    env: TOOL_ENVIRONMENT,
    stdio: ['pipe', 'ignore', 'pipe'],
  })
}

/** nft keeps every line that it was told, for its history: after so many bytes another one takes over. */
const MOST_TOLD_BYTES = 2 * 1024 * 1024

/** Words of an nft that are kept for the log. */
const MOST_WORDS = 500

/** An nft that was replaced keeps its tables until the other one surely has made its own. Milliseconds. */
const HANDOVER_MS = 5_000

/** One nft. */
export interface OwnerLink {
  /** Put behind the names of tables: those of its predecessor may still be there. */
  readonly suffix: string
  /** Runs one line of a change. */
  write(line: string): void
  /** Runs one line that a successor would be told as well, so that it is no reason to have one. */
  fill(line: string): void
}

/** Who has tables there. */
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

/** Starts the nft when there is something to own, and ends it when there is nothing. */
export class TableOwner {
  readonly #start: StartNft
  readonly #tables = new Set<OwnedTable>()
  #current: Running | undefined
  #told = 0
  #started = 0

  constructor(start: StartNft = startNft) {
    this.#start = start
  }

  /** Whether it has been told so much that {@link replace} is due. */
  get isWornOut(): boolean {
    return this.#told > MOST_TOLD_BYTES
  }

  /** The nft for a table, until {@link OwnedTable.onEnd} or {@link release}. */
  acquire(table: OwnedTable): OwnerLink {
    this.#tables.add(table)
    return (this.#current ?? this.#begin()).link
  }

  /** Gives up what a table has made itself go. */
  release(table: OwnedTable): void {
    this.#tables.delete(table)
    if (this.#tables.size > 0) return
    const child = this.#current?.child
    this.#current = undefined
    child?.stdin?.end()
  }

  /** Starts another nft, which all tables move to. */
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
    this.#told = 0
    const fill = (line: string): void => {
      child.stdin?.write(`${line}\n`)
    }
    const link: OwnerLink = {
      suffix: this.#started === 1 ? '' : `_${this.#started}`,
      fill,
      write: (line) => {
        this.#told += line.length
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
