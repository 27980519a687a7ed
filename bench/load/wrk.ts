/**
 * wrk as load: one thread, as many connections as asked, until it is told to stop. A script makes it write
 * its exact figures, and its errors, as one line of JSON.
 */
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { MeshError } from '../../src/lib/errors.ts'
import type { RunningProcess } from '../site/process.ts'
import type { Stage } from '../site/stage.ts'
import { requireTool } from '../site/tools.ts'

/** Only a done() function: the requests themselves stay as fast as without a script. */
const REPORT_SCRIPT = `done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    'hostmesh-bench {"requests":%d,"durationUs":%d,"p50Us":%d,"p99Us":%d,"errors":{"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect, errors.read, errors.write, errors.status, errors.timeout))
end
`

/**
 * Also lets every connection rest between its opening and its first request. Without that the handshakes
 * of 256 connections that open at once are the p99 of whoever makes one for each of them. The price is
 * 1 us of wrk's time a request, the same for all subjects.
 */
const RESTING_SCRIPT = `${REPORT_SCRIPT}
local fresh, rest = 0, 0
init = function(arguments)
  fresh, rest = tonumber(arguments[1]), tonumber(arguments[2])
end
delay = function()
  if fresh == 0 then return 0 end
  fresh = fresh - 1
  return rest
end
`

/** Writes the scripts that {@link startWrk} needs into `directory`. */
export async function writeWrkScripts(directory: string): Promise<void> {
  await writeFile(join(directory, 'report.lua'), REPORT_SCRIPT)
  await writeFile(join(directory, 'resting.lua'), RESTING_SCRIPT)
}

/** Milliseconds of rest for each connection that opens at the same time, and at least. */
const REST_MS_PER_CONNECTION = 4
const MIN_REST_MS = 300

/** What wrk counted between its start and its stop. */
export interface WrkReport {
  readonly requests: number
  readonly durationUs: number
  readonly p50Us: number
  readonly p99Us: number
  /** Connections refused, reads and writes failed, answers other than 2xx and 3xx, answers too late. */
  readonly errors: Readonly<Record<'connect' | 'read' | 'write' | 'status' | 'timeout', number>>
}

/** How wrk is to ask. */
export interface WrkLoad {
  readonly connections: number
  /** Whether new connections rest before their first request; see the script. */
  readonly rested: boolean
  readonly headers?: readonly string[]
}

/** Starts wrk on the small page; {@link stopWrk} ends it. */
export function startWrk(stage: Stage, load: WrkLoad): RunningProcess {
  const { connections, rested, headers = [] } = load
  const restMs = Math.max(MIN_REST_MS, connections * REST_MS_PER_CONNECTION)
  return stage.startLoad('wrk', [
    requireTool('wrk'),
    '--threads',
    '1',
    '--connections',
    String(connections),
    // Longer than any sample: the caller stops it. A slow answer is an answer, not a timeout.
    '--duration',
    '300',
    '--timeout',
    '10s',
    '--script',
    join(stage.files.directory, rested ? 'resting.lua' : 'report.lua'),
    ...headers.flatMap((header) => ['--header', header]),
    stage.url('/'),
    '--',
    String(connections),
    String(restMs),
  ])
}

/** Stops wrk and gives its report. Throws HM_BENCH_LOAD when there were errors, or no report. */
export async function stopWrk(wrk: RunningProcess): Promise<WrkReport> {
  await wrk.stop('SIGINT')
  const report = parseWrkReport(wrk.output())
  const errors = Object.entries(report.errors).filter(([, count]) => count > 0)
  if (errors.length > 0)
    throw new MeshError(
      'HM_BENCH_LOAD',
      `wrk counted errors: ${errors.map(([kind, count]) => `${count} ${kind}`).join(', ')} (of ${report.requests} requests)`,
    )
  if (report.requests === 0)
    throw new MeshError('HM_BENCH_LOAD', 'wrk got no answer to any request')
  return report
}

/** Finds the script's line in what wrk wrote. Throws HM_BENCH_LOAD, with all it wrote, when there is none. */
export function parseWrkReport(output: string): WrkReport {
  const match = /^hostmesh-bench (\{.*\})$/m.exec(output)
  if (match?.[1] === undefined)
    throw new MeshError('HM_BENCH_LOAD', `wrk gave no report: ${output.trim()}`)
  return JSON.parse(match[1]) as WrkReport
}
