/**
 * A second copy of the guard, in a table that no other program can flush.
 *
 * `nft flush ruleset` removes all other tables, and until the repair open connections would continue in plaintext. A
 * table with an owner ({@link TableOwner}) survives a flush; the ordinary guard survives the end of this process.
 */
import {
  changeLines,
  type NftElements,
  type PresentTable,
  renderElements,
  renderReplacement,
} from './nft-elements.ts'
import type { OwnedTable, OwnerLink, TableOwner } from './table-owner.ts'

/** The wanted content of the table: its text, and the elements of its sets. */
export interface HeldText {
  readonly text: string
  readonly sets: readonly NftElements[]
}

/** Elements in one line: an interactive nft limits the length of lines. */
const ELEMENTS_A_LINE = 200

/** At least this many addresses that are no longer those of an instance remain known. */
const LEAST_KEPT = 1_000

/** A table that is held. Disposing it removes the table. */
export class HeldGuard implements Disposable, OwnedTable {
  readonly #owner: TableOwner
  readonly #onFailure: (words: string) => void
  readonly #name: string
  #render: ((table: string) => HeldText) | undefined
  #link: OwnerLink | undefined
  #text: string | undefined
  /** Whether lines written now create the table instead of changing it. */
  #isFilling = false
  readonly #elements = new Map<string, Set<string>>()

  /** `onFailure` receives the reason why the table is not held (any more). */
  constructor(
    owner: TableOwner,
    onFailure: (words: string) => void,
    name = `hostmesh_held_${process.pid}`,
  ) {
    this.#owner = owner
    this.#onFailure = onFailure
    this.#name = name
  }

  /** Whether the table is held, unless nft has reported otherwise. */
  get isHeld(): boolean {
    return this.#link !== undefined
  }

  /** Updates the table; elements that packets added to its sets remain. `open` are connections already captured. */
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
      // A restarted unit has the same name but another cgroup.
      this.#run(oneLine(renderElements([set])))
      return
    }
    const wanted = new Set(elements)
    const held = this.#elements.get(name) ?? new Set()
    const gone = [...held].filter((element) => !wanted.has(element))
    // Connections to a removed instance may still be open.
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

/** Joins commands of several lines into one line. */
export function oneLine(text: string): string {
  return text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .map((line) => (line.endsWith('{') ? line : `${line};`))
    .join(' ')
    .replaceAll(';;', ';')
}

/** What a table contains, derived from the text that created it. */
function presentIn(text: string): PresentTable {
  const names = (kind: string): string[] =>
    [...text.matchAll(new RegExp(`^  ${kind} (\\S+) \\{`, 'gm'))].map(([, name = '']) => name)
  return { chains: names('chain'), maps: names('map'), sets: names('set') }
}
