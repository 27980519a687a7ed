/**
 * Pairs and steps out of the bytes of an answer. The figures of a pair are read when somebody looks at them.
 */
import type { Figures, PairFigures } from '../figures.ts'
import type { Step } from '../fleet-store.ts'
import { ByteReader } from './bytes.ts'
import { type CellMeaning, readFigures } from './cells.ts'
import { stepMs, type TierName } from './steps.ts'

/** What the numbers mean. */
interface Lists {
  readonly names: readonly string[]
  readonly cells: readonly CellMeaning[]
  readonly hosts: readonly string[]
}

/** Bytes from `start` to `end`. */
interface Part {
  readonly bytes: Uint8Array
  readonly start: number
  readonly end: number
}

/** A pair out of an answer. */
class AnsweredPair implements PairFigures {
  readonly host: string
  readonly reporter: 'source' | 'destination'
  readonly source: string
  readonly destination: string
  readonly active: number
  readonly lost: number
  readonly #cells: readonly CellMeaning[]
  #part: Part | undefined
  #figures: Figures | undefined

  constructor(reader: ByteReader, { names, cells, hosts }: Lists) {
    this.host = hosts[reader.whole()] ?? ''
    const caller = reader.whole()
    this.reporter = caller % 2 === 0 ? 'source' : 'destination'
    this.source = names[Math.floor(caller / 2)] ?? ''
    this.destination = names[reader.whole()] ?? ''
    this.active = reader.whole()
    this.lost = reader.whole()
    const length = reader.whole()
    this.#cells = cells
    this.#part = { bytes: reader.bytes, start: reader.at, end: reader.at + length }
    reader.at += length
  }

  get figures(): Figures {
    if (this.#figures === undefined) {
      const { bytes, start, end } = this.#part ?? { bytes: new Uint8Array(), start: 0, end: 0 }
      this.#figures = readFigures(new ByteReader(bytes, start), end, this.#cells)
      this.#part = undefined
    }
    return this.#figures
  }
}

/** Reads an answer to `pairs`. */
export function readPairs(answer: Uint8Array, lists: Lists): PairFigures[] {
  return readPairsOf({ bytes: answer, start: 0, end: answer.length }, lists)
}

/** Reads an answer to `history`. */
export function readSteps(answer: Uint8Array, tier: TierName, lists: Lists): Step[] {
  const reader = new ByteReader(answer)
  const steps: Step[] = []
  while (reader.at < answer.length) {
    const atMs = reader.whole() * stepMs[tier]
    const reporting = reader.whole()
    const length = reader.whole()
    const part = { bytes: answer, start: reader.at, end: reader.at + length }
    steps.push({ atMs, pairs: readPairsOf(part, lists), reporting })
    reader.at = part.end
  }
  return steps
}

/** Reads an answer to `hostFigures`. */
export function readHostFigures(answer: Uint8Array, { cells }: Lists): Figures {
  return readFigures(new ByteReader(answer), answer.length, cells)
}

function readPairsOf({ bytes, start, end }: Part, lists: Lists): PairFigures[] {
  const reader = new ByteReader(bytes, start)
  const pairs: PairFigures[] = []
  while (reader.at < end) pairs.push(new AnsweredPair(reader, lists))
  return pairs
}
