/**
 * What was seen: the pairs of services that the aggregator has, or that a file of it has. For commands that judge rules.
 */
import { type Command, Option } from 'commander'
import { MeshError } from '../lib/errors.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import type { GraphDocument } from '../model/fleet.ts'
import { hasKey } from './admin-command.ts'
import { fetchFleet, isDocument } from './fleet-client.ts'
import { addFleetOptions, type FleetOptions } from './fleet-command.ts'

/** Options of such a command. */
export interface SeenOptions extends FleetOptions {
  readonly fleet?: true
  readonly seen?: string
  readonly window: string
}

/** As much as a catalog file may have. */
export const MAX_FILE_BYTES = 64 * 1_024 * 1_024

/** Adds the options that say where it was seen. */
export function addSeenOptions(command: Command): Command {
  command
    .option('--fleet', 'what the aggregator has seen; this unless --seen is given')
    .addOption(
      new Option(
        '--seen <file>',
        'what hostmesh edges --fleet -o json has written; no aggregator is asked',
      ).conflicts('fleet'),
    )
    .option('--window <duration>', 'span in which the aggregator has seen it, 10s to 1d', '1d')
  return addFleetOptions(command)
}

/** The pairs that were seen. @throws MeshError HM_USAGE_SEEN for a file that has none, and as the aggregator's client */
export async function seenGraph(options: SeenOptions): Promise<GraphDocument> {
  const { seen, window } = options
  return seen === undefined ? fetchFleet(options, 'graph', { window }) : readGraph(seen)
}

function readGraph(file: string): GraphDocument {
  const { text } = readTextFile(file, MAX_FILE_BYTES)
  let document: unknown
  try {
    document = JSON.parse(text)
  } catch (cause) {
    throw unreadable(file, 'it is not JSON', cause)
  }
  if (!isDocument('graph', document) || !document.edges.every(isEdge))
    throw unreadable(file, 'it is not a graph of the aggregator')
  if (document.group !== 'service')
    throw unreadable(file, `it is grouped by ${document.group}, and intentions are about services`)
  return document
}

function isEdge(edge: unknown): boolean {
  const isText = (value: unknown): boolean => typeof value === 'string'
  return (
    hasKey(edge, 'source', isText) &&
    hasKey(edge, 'destination', isText) &&
    hasKey(edge, 'traffic', (traffic) =>
      hasKey(traffic, 'closed', (closed) => typeof closed === 'object' && closed !== null),
    )
  )
}

function unreadable(file: string, reason: string, cause?: unknown): MeshError {
  return new MeshError('HM_USAGE_SEEN', `Cannot use ${file} as what was seen: ${reason}`, {
    ...(cause !== undefined && { cause }),
    hint: 'Write it with: hostmesh edges --fleet --window 1d -o json > FILE',
  })
}
