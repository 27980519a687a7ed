/**
 * The filters `--source` and `--destination` of lists of pairs.
 */
import type { Command } from 'commander'
import { closestWord } from '../lib/closest-word.ts'

/** The options `--source` and `--destination`. */
export interface PairFilter {
  readonly source?: string
  readonly destination?: string
}

/** Adds the options. */
export function addPairFilter(command: Command): Command {
  return command
    .option('--source <service>', 'only what this service calls')
    .option('--destination <service>', 'only what calls this service')
}

/** Whether a pair of services fits a filter. */
export function isWanted(
  { source, destination }: PairFilter,
  pair: { readonly source: string; readonly destination: string },
): boolean {
  return (
    (source === undefined || source === pair.source) &&
    (destination === undefined || destination === pair.destination)
  )
}

/** What was filtered, for a sentence: ` from web to db`; empty without a filter. */
export function filterWords({ source, destination }: PairFilter): string {
  return `${source === undefined ? '' : ` from ${source}`}${destination === undefined ? '' : ` to ${destination}`}`
}

/** Sentences for a filter to which nothing fits although there is something. */
export function filterNotes(
  filter: PairFilter,
  pairs: readonly { readonly source: string; readonly destination: string }[],
): readonly string[] {
  return (['source', 'destination'] as const).flatMap((side) => {
    const name = filter[side]
    const names = pairs.map((pair) => pair[side])
    if (name === undefined || names.includes(name)) return []
    const meant = closestWord(name, names)
    return meant === undefined ? [] : [`There is none with ${side} ${name}; did you mean ${meant}?`]
  })
}
