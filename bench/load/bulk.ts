/**
 * curl as load: large downloads one after the other over one connection, thrown away as they arrive.
 */
import { MeshError } from '../../src/lib/errors.ts'
import { BULK_BYTES } from '../site/backend.ts'
import type { RunningProcess } from '../site/process.ts'
import type { Stage } from '../site/stage.ts'
import { requireTool } from '../site/tools.ts'

/** What curl downloaded. */
export interface BulkReport {
  readonly bytes: number
  readonly seconds: number
}

/** Starts curl; it ends by itself after `downloads` times the whole file. */
export function startBulk(stage: Stage, downloads: number): RunningProcess {
  return stage.startLoad('curl', [
    requireTool('curl'),
    '--silent',
    '--show-error',
    '--output',
    '/dev/null',
    '--write-out',
    'hostmesh-bench %{http_code} %{size_download} %{time_total}\\n',
    stage.url(`/bulk?[1-${downloads}]`),
  ])
}

/** Adds up what curl wrote. Throws HM_BENCH_LOAD unless all `downloads` came whole. */
export function parseBulkReport(output: string, downloads: number): BulkReport {
  let bytes = 0
  let seconds = 0
  let whole = 0
  for (const [, status, size, time] of output.matchAll(/^hostmesh-bench (\d+) (\d+) ([\d.]+)$/gm)) {
    bytes += Number(size)
    seconds += Number(time)
    if (status === '200' && Number(size) === BULK_BYTES) whole += 1
  }
  if (whole !== downloads)
    throw new MeshError(
      'HM_BENCH_LOAD',
      `curl got ${whole} of ${downloads} downloads whole: ${output.trim()}`,
    )
  return { bytes, seconds }
}
