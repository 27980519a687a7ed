/**
 * `hostmesh simulate`: whether a set of intentions would allow or cut the connections that were seen. Changes nothing.
 */
import { Command, Option } from 'commander'
import { readIntentions } from '../daemon/intention-file.ts'
import { type SimulatedPair, type Simulation, simulate } from '../daemon/simulate.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import type { DefaultPolicy } from '../model/intention.ts'
import type { Answer } from './answer.ts'
import { exitCodes } from './failure.ts'
import { coverageNotes } from './fleet-command.ts'
import { addPairFilter, isWanted, type PairFilter } from './pair-filter.ts'
import { addReadingOptions, show } from './reading-command.ts'
import { formatRate } from './render/format.ts'
import { type Column, renderList, type Tone } from './render/table.ts'
import { addSeenOptions, MAX_FILE_BYTES, type SeenOptions, seenGraph } from './seen-graph.ts'

interface Options extends SeenOptions, PairFilter {
  readonly intentions: string
  readonly defaultPolicy: DefaultPolicy
  readonly changed?: true
}

/** The `simulate` command. */
export function simulateCommand(): Command {
  const command = new Command('simulate')
    .description(
      'Show what intentions would allow or cut of what was seen; exit code 1 if they cut',
    )
    .requiredOption(
      '--intentions <file>',
      'the whole set: config entries of Consul, or a catalog file; JSON or YAML',
    )
    .addOption(
      new Option('--default-policy <action>', 'what no intention matches; a catalog file says it')
        .choices(['allow', 'deny'])
        .default('deny'),
    )
    .option('--changed', 'list only pairs for which the decision changes')
  addSeenOptions(addPairFilter(command))
  return addReadingOptions(command, { isRepeatable: false }).action(async (options: Options) => {
    await show(options, () => answer(options))
  })
}

async function answer(options: Options): Promise<Answer> {
  const { intentions: fileName, defaultPolicy } = options
  const { text } = readTextFile(fileName, MAX_FILE_BYTES)
  const graph = await seenGraph(options)
  const edges = graph.edges.filter((edge) => isWanted(options, edge))
  const destinations = [...new Set(edges.map(({ destination }) => destination))]
  const set = readIntentions(text, { fileName, defaultPolicy, destinations })
  const simulation = simulate(set, edges)
  return {
    document: simulation,
    text: (style) => {
      const pairs = simulation.pairs.filter(
        ({ change }) => options.changed !== true || change !== 'same',
      )
      const table = pairs.length === 0 ? [] : [renderList(columns, pairs, style), '']
      return [...table, summary(simulation)].join('\n')
    },
    notes: [
      ...simulation.problems,
      ...(graph.omitted > 0 ? [`${graph.omitted} more services and pairs are not judged`] : []),
      ...coverageNotes(graph.coverage),
    ],
    exitCode: simulation.cut > 0 ? exitCodes.failed : exitCodes.ok,
  }
}

const TONES: Readonly<Record<SimulatedPair['change'], Tone>> = {
  cut: 'bad',
  opened: 'warning',
  same: 'faint',
}

const columns: readonly Column<SimulatedPair>[] = [
  { heading: 'SOURCE', cell: ({ source }) => source },
  { heading: 'DESTINATION', cell: ({ destination }) => destination },
  { heading: 'CONN/S', cell: ({ openedPerSecond }) => formatRate(openedPerSecond) },
  { heading: 'TODAY', cell: ({ today }) => today },
  { heading: 'PROPOSED', cell: ({ proposed }) => proposed },
  { heading: 'CHANGE', cell: ({ change }) => ({ text: change, tone: TONES[change] }) },
  { heading: 'BECAUSE TODAY', isWide: true, cell: ({ becauseToday }) => becauseToday ?? '-' },
  { heading: 'BECAUSE', cell: ({ because }) => because },
]

function summary({ pairs, cut, opened, allowed, denied, defaultPolicy }: Simulation): string {
  return `${pairs.length} pairs seen: ${allowed} would be allowed, ${denied} denied (default policy ${defaultPolicy}); ${cut} would be cut, ${opened} opened`
}
