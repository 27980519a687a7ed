/**
 * Many idle connections as load: each has carried one request and then nothing.
 */
import { join } from 'node:path'
import { MeshError } from '../../src/lib/errors.ts'
import { type RunningProcess, waitFor } from '../site/process.ts'
import type { Stage } from '../site/stage.ts'

/** Opens `count` connections and resolves when each has had an answer. Stop the process to close them. */
export async function openIdleConnections(stage: Stage, count: number): Promise<RunningProcess> {
  const { host, port, uid = 0 } = stage.entry
  const program = join(import.meta.dirname, 'idle-client.ts')
  const load = stage.startLoad(
    'idle connections',
    [process.execPath, program, host, String(port), String(count), String(uid)],
    0,
  )
  await waitFor(
    `${count} idle connections answered`,
    { deadlineMs: 60_000, signal: stage.signal },
    () => {
      if (load.end !== undefined)
        throw new MeshError('HM_BENCH_LOAD', `Idle connections lost: ${load.outputTail()}`)
      return load.output().includes('ready') ? true : undefined
    },
  )
  return load
}
