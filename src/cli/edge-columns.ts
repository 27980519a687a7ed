/**
 * The table of pairs of services.
 */
import type { GraphEdge } from '../model/fleet.ts'
import { errorCell, quantileText } from './fleet-command.ts'
import { formatBytes, formatRate } from './render/format.ts'
import type { Cell, Column } from './render/table.ts'

/** The columns of a pair; also for the callers of one service. */
export const edgeColumns: readonly Column<GraphEdge>[] = [
  { heading: 'SOURCE', cell: ({ source }) => source },
  { heading: 'DESTINATION', cell: ({ destination }) => destination },
  { heading: 'CONN/S', cell: ({ traffic }) => formatRate(traffic.openedPerSecond) },
  { heading: 'ERRORS', cell: ({ traffic }) => errorCell(traffic) },
  { heading: 'CONNECT P50/P99', cell: ({ traffic }) => quantileText(traffic.connectMs) },
  { heading: 'FIRST BYTE P50/P99', cell: ({ traffic }) => quantileText(traffic.firstByteMs) },
  { heading: 'ACTIVE', cell: ({ traffic }) => String(traffic.active) },
  {
    heading: 'DURATION P50/P99',
    isWide: true,
    cell: (edge) => quantileText(edge.traffic.durationMs),
  },
  {
    heading: 'SENT/S',
    isWide: true,
    cell: ({ traffic }) => formatBytes(traffic.sentBytesPerSecond),
  },
  {
    heading: 'RECEIVED/S',
    isWide: true,
    cell: ({ traffic }) => formatBytes(traffic.receivedBytesPerSecond),
  },
  { heading: 'ENDINGS', isWide: true, cell: ({ traffic }) => endingText(traffic.closed) },
  { heading: 'COUNTED BY', isWide: true, cell: ({ reporter }) => reporter },
  { heading: 'POLICY', cell: policyCell },
  { heading: 'BECAUSE', isWide: true, cell: ({ policy }) => policy?.reason ?? '-' },
]

function endingText(closed: GraphEdge['traffic']['closed']): string {
  const parts = Object.entries(closed).map(([flag, count]) => `${flag}:${count}`)
  return parts.join(' ') || '-'
}

function policyCell({ policy }: GraphEdge): Cell {
  if (policy === null) return { text: '-', tone: 'faint' }
  return policy.allow ? 'allow' : { text: 'deny', tone: 'bad' }
}
