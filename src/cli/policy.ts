/**
 * `hostmesh policy`: intentions for what was seen, and checks of a fleet's rules without a Consul.
 */
import { Command, Option } from 'commander'
import { lint } from '../daemon/policy/lint.ts'
import type { Finding } from '../daemon/policy/lint-rules.ts'
import { groupsOf, type Proposal, propose } from '../daemon/policy/propose.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import type { Answer } from './answer.ts'
import { exitCodes } from './failure.ts'
import { coverageNotes } from './fleet-command.ts'
import { addPairFilter, isWanted, type PairFilter } from './pair-filter.ts'
import { addReadingOptions, type ReadingOptions, show } from './reading-command.ts'
import { type Column, paint, renderList } from './render/table.ts'
import { addSeenOptions, MAX_FILE_BYTES, type SeenOptions, seenGraph } from './seen-graph.ts'

type Form = 'yaml' | 'json' | 'commands' | 'catalog'

interface ProposeOptions extends Omit<SeenOptions, 'output'>, PairFilter {
  readonly output: Form
}

/** The `policy` command and its subcommands. */
export function policyCommand(): Command {
  const command = new Command('policy').description('Propose and check intentions')
  const proposing = command
    .command('propose')
    .description('Print intentions for what was seen, exact pairs only; changes nothing')
  addSeenOptions(addPairFilter(proposing))
    .addOption(
      new Option('-o, --output <form>', 'config entries, consul commands, or a catalog file')
        .choices(['yaml', 'json', 'commands', 'catalog'])
        .default('yaml'),
    )
    .action(async (options: ProposeOptions) => printProposal(options))
  const linting = command
    .command('lint')
    .description('Check config entries of Consul and catalog files, without a Consul')
    .argument('<file...>', 'JSON or YAML; all files are judged together')
  addReadingOptions(linting, { isRepeatable: false }).action(
    async (files: readonly string[], options: ReadingOptions) => {
      await show(options, async () => lintFiles(files))
    },
  )
  return command
}

async function printProposal(options: ProposeOptions): Promise<void> {
  const graph = await seenGraph({ ...options, output: 'json' })
  const proposal = propose(graph.edges.filter((edge) => isWanted(options, edge)))
  console.log(proposalText(proposal, options.output))
  const omitted = graph.omitted > 0 ? [`${graph.omitted} more services and pairs are left out`] : []
  const denied = options.output === 'json' ? deniedLines(proposal) : []
  for (const note of [...proposal.notes, ...denied, ...omitted, ...coverageNotes(graph.coverage)])
    console.error(note)
}

/** A proposal in one of its forms, the same for the same pairs. JSON has no comments, so it names no denied pairs. */
export function proposalText(proposal: Proposal, form: Form): string {
  const groups = groupsOf(proposal.allowed)
  const entries = groups.map(({ destination, sources }) => ({
    Kind: 'service-intentions',
    Name: destination,
    Sources: sources.map((source) => ({ Name: source, Action: 'allow' })),
  }))
  if (form === 'json') return JSON.stringify(entries, null, 2)
  const comments = deniedLines(proposal).map((line) => `# ${line}`)
  return [...HEADS[form], ...comments, ...BODIES[form](proposal)].join('\n')
}

const HEADS: Readonly<Record<Exclude<Form, 'json'>, readonly string[]>> = {
  yaml: ['# Each entry replaces all intentions that Consul has for its destination.'],
  commands: ['# Adds rules, and fails where a pair has one already.'],
  catalog: ['# For the catalog file; what no rule names is denied.'],
}

const BODIES: Readonly<Record<Exclude<Form, 'json'>, (proposal: Proposal) => string[]>> = {
  // Names of services need no quotes in a shell; in YAML some of them are numbers or words of it.
  commands: ({ allowed }) =>
    allowed.map(
      ({ source, destination }) => `consul intention create -allow ${source} ${destination}`,
    ),
  catalog: ({ allowed }) => [
    'defaultPolicy: deny',
    allowed.length === 0 ? 'intentions: []' : 'intentions:',
    ...allowed.map(
      ({ source, destination }) =>
        `  - {SourceName: ${JSON.stringify(source)}, DestinationName: ${JSON.stringify(destination)}, Action: allow}`,
    ),
  ],
  yaml: ({ allowed }) =>
    allowed.length === 0
      ? ['[]']
      : groupsOf(allowed).flatMap(({ destination, sources }, index) => [
          // Comments alone would be an empty document.
          ...(index === 0 ? [] : ['---']),
          'Kind: service-intentions',
          `Name: ${JSON.stringify(destination)}`,
          'Sources:',
          ...sources.map((source) => `  - {Name: ${JSON.stringify(source)}, Action: allow}`),
        ]),
}

/** `paint` removes line breaks and whatever else could end a comment. */
function deniedLines({ denied }: Proposal): string[] {
  return denied.map(({ source, destination, reason }) =>
    paint(`Denied today, not proposed: ${source} -> ${destination} (${reason})`),
  )
}

const columns: readonly Column<Finding>[] = [
  { heading: 'CODE', cell: ({ code }) => code },
  {
    heading: 'SEVERITY',
    cell: ({ severity }) => ({ text: severity, tone: severity === 'error' ? 'bad' : 'warning' }),
  },
  { heading: 'FILE', cell: ({ file }) => file },
  { heading: 'ENTRY', cell: ({ where }) => where },
  { heading: 'FINDING', cell: ({ message }) => message },
]

function lintFiles(names: readonly string[]): Answer {
  const files = names.map((name) => ({ name, text: readTextFile(name, MAX_FILE_BYTES).text }))
  const findings = lint(files)
  const hasErrors = findings.some(({ severity }) => severity === 'error')
  return {
    document: { findings },
    text: (style) =>
      findings.length === 0
        ? `${files.length === 1 ? '1 file' : `${files.length} files`}: nothing found`
        : renderList(columns, findings, style),
    notes: findings.length === 0 ? [] : ['What each code means: docs/policy-lint.md'],
    exitCode: hasErrors ? exitCodes.failed : exitCodes.ok,
  }
}
