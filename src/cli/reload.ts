/**
 * `hostmesh reload`: has the daemon of this host hand over to a new process with the configuration and the program that
 * are on disk now, and says how that ended. What `systemctl reload` runs.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { Command } from 'commander'
import { errorCode, MeshError } from '../lib/errors.ts'
import type { StatusDocument } from '../model/admin.ts'
import { fetchDocument } from './admin-client.ts'
import { hasKey } from './admin-command.ts'

/** How often the daemon is asked how far it is. */
const POLL_MS = 100

/** The daemon's own limits are shorter: beyond this something is wrong that it cannot say. */
const LIMIT_MS = 120_000

/** The `reload` command. */
export function reloadCommand(): Command {
  return new Command('reload')
    .description('Replace the running daemon by a new process, without losing a connection')
    .action(async (_options: unknown, command: Command) => {
      const { addr } = command.optsWithGlobals<{ readonly addr: string }>()
      const before = await askStatus(addr)
      askToReload(before.pid)
      const after = await awaitOutcome(addr, (before.reload?.count ?? 0) + 1)
      console.log(`Reloaded: process ${after.pid} has taken over from ${before.pid}`)
    })
}

function askToReload(pid: number): void {
  try {
    process.kill(pid, 'SIGHUP')
  } catch (cause) {
    throw new MeshError('HM_RELOAD_DENIED', `Cannot ask process ${pid} to reload`, {
      cause,
      ...(errorCode(cause) === 'EPERM' && {
        hint: 'Only root and the user of the daemon may: sudo systemctl reload hostmesh',
      }),
    })
  }
}

/** The status once reload number `count` is over. While the admin socket changes hands nobody answers. */
async function awaitOutcome(address: string, count: number): Promise<StatusDocument> {
  const endMs = performance.now() + LIMIT_MS
  let last: MeshError | undefined
  while (performance.now() < endMs) {
    await delay(POLL_MS)
    try {
      const status = await askStatus(address)
      const { reload } = status
      if (reload === undefined || reload.count < count || reload.state === 'running') continue
      if (reload.state === 'failed')
        throw new MeshError('HM_RELOAD_FAILED', reload.reason ?? 'The reload has failed')
      return status
    } catch (error) {
      if (!(error instanceof MeshError) || error.code === 'HM_RELOAD_FAILED') throw error
      last = error
    }
  }
  throw new MeshError(
    'HM_RELOAD_UNANSWERED',
    `The daemon did not say within ${LIMIT_MS / 1_000} s how the reload ended`,
    { ...(last !== undefined && { cause: last }), hint: 'Look at its log: journalctl -u hostmesh' },
  )
}

function askStatus(address: string): Promise<StatusDocument> {
  return fetchDocument(address, '/v1/status', (value): value is StatusDocument =>
    hasKey(value, 'pid', (pid) => typeof pid === 'number'),
  )
}
