/**
 * Common parts of the commands that ask the aggregator: its address, what a document covers, figures for people.
 */
import { type Command, Option } from 'commander'
import type { Coverage, Quantiles, Traffic } from '../model/fleet.ts'
import { DEFAULT_AGGREGATOR, type FleetAddress } from './fleet-client.ts'
import type { ReadingOptions } from './reading-command.ts'
import { formatRoundTrip, formatShare } from './render/format.ts'
import { type Cell, paint, type Tone } from './render/table.ts'

/** The options of such a command. */
export interface FleetOptions extends ReadingOptions, FleetAddress {}

/** Adds the options that say how the aggregator is reached. */
export function addFleetOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--aggregator <address>', "the aggregator's socket, or https://host:port")
        .env('HOSTMESH_AGGREGATOR')
        .default(DEFAULT_AGGREGATOR),
    )
    .addOption(
      new Option('--token-file <file>', 'file with the bearer token for it').env(
        'HOSTMESH_TOKEN_FILE',
      ),
    )
    .option('--ca-file <file>', 'roots of its certificate, PEM; those of the system unless given')
    .option('--cert-file <file>', 'certificate to show to it, PEM')
    .option('--key-file <file>', 'key of that certificate, PEM')
}

/** What is to be said about a document's figures, for standard error. */
export function coverageNotes({ notes, live, at }: Coverage): readonly string[] {
  return [...(live ? [] : [`As it was at ${paint(at)}`]), ...notes.map((note) => paint(note))]
}

/** Median and 99th percentile. */
export function quantileText(quantiles: Quantiles | null): string {
  if (quantiles === null) return '-'
  return `${formatRoundTrip(quantiles.p50)} / ${formatRoundTrip(quantiles.p99)}`
}

/** Above this share of errors a figure is marked; the red one is where a page should have been sent. */
const MARKED_SHARE = 0.001
const BAD_SHARE = 0.01

/** The share of errors. */
export function errorCell({ errorShare }: Traffic): Cell {
  if (errorShare === null) return '-'
  const text = formatShare(errorShare)
  if (errorShare < MARKED_SHARE) return text
  return { text, tone: errorShare < BAD_SHARE ? 'warning' : 'bad' }
}

/** Health of a service, state of a host, or severity of a risk, with its color. */
export function stateCell(state: string): Cell {
  const tone = TONES[state]
  return tone === undefined ? state : { text: state, tone }
}

const TONES: Readonly<Record<string, Tone>> = {
  healthy: 'good',
  ready: 'good',
  passing: 'good',
  starting: 'warning',
  draining: 'warning',
  degraded: 'warning',
  warning: 'warning',
  medium: 'warning',
  failing: 'bad',
  critical: 'bad',
  silent: 'bad',
  conflicting: 'bad',
  high: 'bad',
  unknown: 'faint',
}
