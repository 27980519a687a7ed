/**
 * The guard once more, in a table that nobody else can flush.
 *
 * `nft flush ruleset` takes every table away, and between that and the repair open connections would go on in plaintext.
 * A table with an owner is left alone by everybody but the program that made it, for as long as it runs: an `nft`
 * whose input we hold. It goes with this process, whatever ends it; the guard proper is what stays then.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { SYSTEM_PATH } from './command.ts'
import {
  changeLines,
  type NftElements,
  type PresentTable,
  renderElements,
  renderReplacement,
} from './nft-rules.ts'

/** Starts an nft that reads commands, one transaction a line. */
export type StartNft = () => ChildProcess

/** What the table is to be: its text, and the elements of its sets. */
export interface HeldText {
  readonly text: string
  readonly sets: readonly NftElements[]
}

/** Elements in one line: the lines of an interactive nft have their limits. */
const ELEMENTS_A_LINE = 200

/** Addresses that are none of an instance any more and stay known at least. */
const LEAST_KEPT = 1_000

/** Words of an nft that are kept for the log. */
const MOST_WORDS = 500

/** Starts nft in the network namespace of this process, out of reach of signals to its group: it ends with its input. */
export function startNft(): ChildProcess {
  return spawn('nft', ['-i'], {
    detached: true,
    env: { PATH: SYSTEM_PATH, LC_ALL: 'C' },
    stdio: ['pipe', 'ignore', 'pipe'],
  })
}

/** A table that is held. Disposing it takes the table away. */
export class HeldGuard implements Disposable {
  readonly table: string
  readonly #start: StartNft
  readonly #onFailure: (words: string) => void
  #child: ChildProcess | undefined
  #text: string | undefined
  readonly #elements = new Map<string, Set<string>>()

  /** `onFailure` is told why the table is not held (any more). */
  constructor(
    start: StartNft,
    onFailure: (words: string) => void,
    table = `hostmesh_held_${process.pid}`,
  ) {
    this.table = table
    this.#start = start
    this.#onFailure = onFailure
  }

  /** Whether a table is held, as far as nft has not said otherwise. */
  get isHeld(): boolean {
    return this.#child !== undefined
  }

  /** Makes the table so; what packets have put into its sets stays. `open` are connections that are captured already. */
  update({ text, sets }: HeldText, open: readonly NftElements[] = []): void {
    const isNew = this.#child === undefined
    if (isNew) this.#begin()
    const owned = text.replace('{\n', '{\n  flags owner\n')
    if (owned !== this.#text) {
      const present = this.#text === undefined ? undefined : presentIn(this.#text)
      this.#write(oneLine(renderReplacement(this.table, owned, present)))
      this.#text = owned
    }
    for (const set of sets) this.#fill(set)
    if (isNew) for (const set of open) this.#change('add', { ...set, table: this.table })
  }

  [Symbol.dispose](): void {
    const child = this.#child
    this.#forget()
    child?.stdin?.end()
  }

  #fill(set: NftElements): void {
    const { name, elements } = set
    if (set.kind === 'map') {
      // A unit that has restarted is another one by the same name.
      this.#write(oneLine(renderElements([set])))
      return
    }
    const wanted = new Set(elements)
    const held = this.#elements.get(name) ?? new Set()
    const gone = [...held].filter((element) => !wanted.has(element))
    // Connections to an instance that is gone may still be open.
    const isKept = name.startsWith('known') && gone.length < wanted.size + LEAST_KEPT
    if (!isKept) this.#change('delete', { ...set, elements: gone })
    this.#change('add', { ...set, elements: elements.filter((element) => !held.has(element)) })
    this.#elements.set(name, isKept ? new Set([...held, ...elements]) : wanted)
  }

  #change(verb: 'add' | 'delete', { table, name, elements }: NftElements): void {
    for (let at = 0; at < elements.length; at += ELEMENTS_A_LINE)
      for (const line of changeLines(verb, table, name, elements.slice(at, at + ELEMENTS_A_LINE)))
        this.#write(line.trim())
  }

  #begin(): void {
    const child = this.#start()
    this.#child = child
    this.#write(`add table inet ${this.table} { flags owner; }`)
    let words = ''
    const fail = (why: string): void => {
      if (this.#child !== child) return
      this.#forget()
      child.stdin?.end()
      this.#onFailure(why)
    }
    child.stdin?.on('error', () => undefined)
    child.stderr?.on('data', (chunk: Buffer) => {
      words = (words + chunk.toString('utf8')).slice(0, MOST_WORDS)
      if (/error/i.test(words)) fail(words.trim().split('\n')[0] ?? '')
    })
    child.on('error', (error) => fail(error.message))
    child.on('exit', (code, signal) => fail(`nft has ended: ${code ?? signal}`))
    child.unref()
  }

  #write(line: string): void {
    this.#child?.stdin?.write(`${line}\n`)
  }

  #forget(): void {
    this.#child = undefined
    this.#text = undefined
    this.#elements.clear()
  }
}

/** Commands of several lines as one. */
export function oneLine(text: string): string {
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .map((line) => (line.endsWith('{') ? line : `${line};`))
    .join(' ')
    .replaceAll(';;', ';')
}

/** What of a table is there, by the text that made it. */
function presentIn(text: string): PresentTable {
  const names = (kind: string): string[] =>
    [...text.matchAll(new RegExp(`^  ${kind} (\\S+) \\{`, 'gm'))].map(([, name = '']) => name)
  return { chains: names('chain'), maps: names('map') }
}
