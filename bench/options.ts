/**
 * The command line of `npm run bench`.
 */
import { parseArgs } from 'node:util'
import { MeshError } from '../src/lib/errors.ts'
import { SCENARIO_NAMES, type ScenarioName } from './scenario-names.ts'
import { SUBJECT_NAMES, type SubjectName } from './subject-names.ts'

/** A run to be made. */
export interface RunOptions {
  readonly subjects: readonly SubjectName[]
  readonly scenarios: readonly ScenarioName[]
  readonly rounds: number
  /** Factor on the length of every sample. */
  readonly lengthFactor: number
  readonly jsonFile: string | undefined
  readonly profileDirectory: string | undefined
}

/** A report to be written from the results of an earlier run. */
export interface ReportOptions {
  readonly resultsFile: string
  /** Markdown file with the report's markers, which is then updated; undefined to print. */
  readonly into: string | undefined
}

/** What was asked for. */
export type Command =
  | { readonly kind: 'help' }
  | { readonly kind: 'run'; readonly options: RunOptions }
  | { readonly kind: 'report'; readonly options: ReportOptions }

/** Rounds of a full run. */
const FULL_ROUNDS = 5

/** The quick run: enough to see a regression, with start-up in under 45 s. */
const QUICK = {
  subjects: ['haproxy', 'hostmesh-capture', 'hostmesh-upstream'],
  scenarios: ['requests-64', 'mixed'],
  rounds: 2,
  lengthFactor: 0.45,
} as const

/** What --help prints. */
export const HELP = `Usage: npm run bench -- [options]

Measures two hops with mutual TLS between two network namespaces: hostmesh beside HAProxy, nginx and Envoy,
and ztunnel where HOSTMESH_BENCH_ZTUNNEL names its binary.
Needs root. The full run takes about 15 minutes.

  --quick             requests at 64 connections and the mixed load, against HAProxy alone, under 45 s
  --only NAMES        subjects, comma-separated: ${SUBJECT_NAMES.join(', ')}
  --scenarios NAMES   scenarios, comma-separated: ${SCENARIO_NAMES.join(', ')}
  --rounds N          rounds (default ${FULL_ROUNDS}); every round measures every subject once
  --length FACTOR     multiplies the length of every sample (default 1)
  --json FILE         writes the rows there, and what machine it was to FILE's name with .environment.json
  --profile DIR       has every hostmesh thread write a CPU profile there (slows it: not for results)
  --report FILE       no run: makes the table and the picture from an earlier run's FILE
  --into FILE         with --report: puts them into this Markdown file, between its markers
`

/** Reads the arguments after the program's name. Throws HM_BENCH_USAGE. */
export function parseCommand(argv: readonly string[]): Command {
  const values = parse(argv)
  if (values.help === true) return { kind: 'help' }
  if (values.report !== undefined)
    return { kind: 'report', options: { resultsFile: values.report, into: values.into } }
  if (values.into !== undefined) throw usage('--into goes with --report')
  const quick = values.quick === true
  return {
    kind: 'run',
    options: {
      subjects: names(values.only, SUBJECT_NAMES) ?? (quick ? QUICK.subjects : SUBJECT_NAMES),
      scenarios:
        names(values.scenarios, SCENARIO_NAMES) ?? (quick ? QUICK.scenarios : SCENARIO_NAMES),
      rounds: wholeNumber(values.rounds) ?? (quick ? QUICK.rounds : FULL_ROUNDS),
      lengthFactor: factor(values.length) ?? (quick ? QUICK.lengthFactor : 1),
      jsonFile: values.json,
      profileDirectory: values.profile,
    },
  }
}

interface Values {
  readonly help?: boolean
  readonly quick?: boolean
  readonly only?: string
  readonly scenarios?: string
  readonly rounds?: string
  readonly length?: string
  readonly json?: string
  readonly profile?: string
  readonly report?: string
  readonly into?: string
}

function parse(argv: readonly string[]): Values {
  try {
    const { values } = parseArgs({
      args: [...argv],
      options: {
        help: { type: 'boolean' },
        quick: { type: 'boolean' },
        only: { type: 'string' },
        scenarios: { type: 'string' },
        rounds: { type: 'string' },
        length: { type: 'string' },
        json: { type: 'string' },
        profile: { type: 'string' },
        report: { type: 'string' },
        into: { type: 'string' },
      },
    })
    return values
  } catch (error) {
    throw usage(error instanceof Error ? error.message : String(error))
  }
}

function names<T extends string>(
  text: string | undefined,
  known: readonly T[],
): readonly T[] | undefined {
  if (text === undefined) return undefined
  const asked = text.split(',').map((name) => name.trim())
  for (const name of asked)
    if (!known.some((each) => each === name))
      throw usage(`Unknown name "${name}"; there are: ${known.join(', ')}`)
  // In the order of the list, whatever the order of the arguments.
  return known.filter((name) => asked.includes(name))
}

function wholeNumber(text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1 || value > 1_000)
    throw usage(`--rounds must be a whole number from 1 to 1000, got "${text}"`)
  return value
}

function factor(text: string | undefined): number | undefined {
  if (text === undefined) return undefined
  const value = Number(text)
  if (!(value >= 0.1 && value <= 100))
    throw usage(`--length must be a number from 0.1 to 100, got "${text}"`)
  return value
}

function usage(message: string): MeshError {
  return new MeshError('HM_BENCH_USAGE', message, { hint: 'See: npm run bench -- --help' })
}
