/**
 * The guard once more, in a table that nobody else can flush.
 *
 * `nft flush ruleset` takes every table away, and between that and the repair open connections would go on in plaintext. A
 * table with an owner ({@link TableOwner}) is left alone; the guard proper is what stays when this process ends.
 */
import {
  changeLines,
  type NftElements,
  type PresentTable,
  renderElements,
  renderReplacement,
} from './nft-elements.ts'
import type { OwnedTable, OwnerLink, TableOwner } from './table-owner.ts'

/** What the table is to be: its text, and the elements of its sets. */
export interface HeldText {
  readonly text: string
  readonly sets: readonly NftElements[]
}

/** Elements in one line: the lines of an interactive nft have their limits. */
const ELEMENTS_A_LINE = 200

/** Addresses that are none of an instance any more and stay known at least. */
const LEAST_KEPT = 1_000

/** A table that is held. Disposing it takes the table away. */
export class HeldGuard implements Disposable, OwnedTable {
  readonly #owner: TableOwner
  readonly #onFailure: (words: string) => void
  readonly #name: string
  #render: ((table: string) => HeldText) | undefined
  #link: OwnerLink | undefined
  #text: string | undefined
  /** Whether what is written now makes the table, in place of changing it. */
  #isFilling = false
  readonly #elements = new Map<string, Set<string>>()

  /** `onFailure` is told why the table is not held (any more). */
  constructor(
    owner: TableOwner,
    onFailure: (words: string) => void,
    name = `hostmesh_held_${process.pid}`,
  ) {
    this.#owner = owner
    this.#onFailure = onFailure
    this.#name = name
  }

  /** Whether a table is held, as far as nft has not said otherwise. */
  get isHeld(): boolean {
    return this.#link !== undefined
  }

  /** Makes the table so; what packets have put into its sets stays. `open` are connections that are captured already. */
  update(render: (table: string) => HeldText, open: readonly NftElements[] = []): void {
    this.#render = render
    if (this.#link === undefined) this.#begin(this.#owner.acquire(this))
    else this.#write()
    this.#isFilling = true
    for (const set of open) this.#change('add', set)
    this.#isFilling = false
  }

  onEnd(why: string): void {
    this.#forget()
    this.#onFailure(why)
  }

  onReplaced(link: OwnerLink): void {
    this.#forget()
    this.#begin(link)
  }

  [Symbol.dispose](): void {
    if (this.#link !== undefined) this.#run(`delete table inet ${this.#table}`)
    this.#forget()
    this.#owner.release(this)
  }

  get #table(): string {
    return `${this.#name}${this.#link?.suffix ?? ''}`
  }

  #begin(link: OwnerLink): void {
    this.#link = link
    this.#isFilling = true
    this.#run(`add table inet ${this.#table} { flags owner; }`)
    this.#write()
    this.#isFilling = false
  }

  #write(): void {
    if (this.#render === undefined) return
    const { text, sets } = this.#render(this.#table)
    const owned = text.replace('{\n', '{\n  flags owner\n')
    if (owned !== this.#text) {
      const present = this.#text === undefined ? undefined : presentIn(this.#text)
      this.#run(oneLine(renderReplacement(this.#table, owned, present)))
      this.#text = owned
    }
    for (const set of sets) this.#fill(set)
  }

  #fill(set: NftElements): void {
    const { name, elements } = set
    if (set.kind === 'map') {
      // A unit that has restarted is another one by the same name.
      this.#run(oneLine(renderElements([set])))
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

  #change(verb: 'add' | 'delete', { name, elements }: NftElements): void {
    for (let at = 0; at < elements.length; at += ELEMENTS_A_LINE)
      for (const line of changeLines(
        verb,
        this.#table,
        name,
        elements.slice(at, at + ELEMENTS_A_LINE),
      ))
        this.#run(line.trim())
  }

  #run(line: string): void {
    if (this.#isFilling) this.#link?.fill(line)
    else this.#link?.write(line)
  }

  #forget(): void {
    this.#link = undefined
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
  return { chains: names('chain'), maps: names('map'), sets: names('set') }
}
