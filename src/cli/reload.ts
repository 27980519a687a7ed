/**
 * `hostmesh reload`: makes the daemon of this host hand over to a new process with the configuration and the program
 * now on disk, and reports the result. `systemctl reload` runs it.
 */
import { readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { Command } from 'commander'
import { errorCode, MeshError } from '../lib/errors.ts'
import type { StatusDocument } from '../model/admin.ts'
import { fetchDocument } from './admin-client.ts'
import { hasKey } from './admin-command.ts'

/** Interval of the requests to the daemon. */
const POLL_MS = 100

/** Longer than the daemon's own limits: when it expires, something is wrong that the daemon cannot report. */
const LIMIT_MS = 120_000

/** A successor whose predecessor has died answers within this time. */
const ORPHAN_MS = 5_000

/** The `reload` command. */
export function reloadCommand(): Command {
  return new Command('reload')
    .description('Replace the running daemon by a new process, without losing a connection')
    .action(async (_options: unknown, command: Command) => {
      const { addr } = command.optsWithGlobals<{ readonly addr: string }>()
      const before = await awaitIdle(addr)
      askToReload(before.pid)
      const after = await awaitOutcome(addr, before)
      console.log(`Reloaded: process ${after.pid} has taken over from ${before.pid}`)
    })
}

/**
 * The status when no reload is in progress. A reload requested by another caller may have started with older files, and
 * the daemon accepts no second one meanwhile.
 */
async function awaitIdle(address: string): Promise<StatusDocument> {
  let status = await askStatus(address)
  let heardMs = performance.now()
  const endMs = heardMs + LIMIT_MS
  while (status.reload?.state === 'running' && performance.now() < endMs) {
    await delay(POLL_MS)
    try {
      status = await askStatus(address)
      heardMs = performance.now()
    } catch (error) {
      const isLost = !isRunning(status.pid) && performance.now() - heardMs > ORPHAN_MS
      if (!(error instanceof MeshError) || isLost) throw error
    }
  }
  return status
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

/** The part of a status that shows the progress of a reload. */
export type ReloadView = Pick<StatusDocument, 'pid' | 'reload'>

/**
 * Compares an answer with the status `before` the request. A successor continues its predecessor's count; a process
 * that does not was started by something else, in place of one that has died. Pure.
 */
export function reloadResult(
  before: ReloadView,
  now: ReloadView,
): 'under way' | 'done' | 'failed' | 'lost' {
  const { reload = { count: 0, state: 'none' } } = now
  const isCounted = reload.count > (before.reload?.count ?? 0)
  if (!isCounted) return now.pid === before.pid ? 'under way' : 'lost'
  if (reload.state === 'running') return 'under way'
  return reload.state === 'failed' ? 'failed' : 'done'
}

/** The status when the reload is over. While the admin socket is handed over, no process answers. */
async function awaitOutcome(address: string, before: ReloadView): Promise<StatusDocument> {
  const endMs = performance.now() + LIMIT_MS
  let last: MeshError | undefined
  let aloneSinceMs: number | undefined
  while (performance.now() < endMs) {
    await delay(POLL_MS)
    const isGone = !isRunning(before.pid)
    const answer = await askStatus(address).catch((error: unknown) => {
      if (!(error instanceof MeshError)) throw error
      last = error
    })
    if (answer === undefined) {
      aloneSinceMs = isGone ? (aloneSinceMs ?? performance.now()) : undefined
      if (aloneSinceMs === undefined || performance.now() - aloneSinceMs < ORPHAN_MS) continue
      throw lost(before.pid, 'no process has taken over')
    }
    aloneSinceMs = undefined
    const outcome = reloadResult(before, answer)
    if (outcome === 'done') return answer
    if (outcome === 'failed')
      throw new MeshError('HM_RELOAD_FAILED', answer.reload?.reason ?? 'The reload has failed')
    if (outcome === 'lost') throw lost(before.pid, `process ${answer.pid} has started in its place`)
  }
  throw new MeshError(
    'HM_RELOAD_UNANSWERED',
    `The daemon did not say within ${LIMIT_MS / 1_000} s how the reload ended`,
    { ...(last !== undefined && { cause: last }), hint: 'Look at its log: journalctl -u hostmesh' },
  )
}

function lost(pid: number, what: string): MeshError {
  return new MeshError(
    'HM_RELOAD_LOST',
    `The daemon has died in the reload: process ${pid} is gone and ${what}; its connections are cut`,
    {
      hint: 'hostmesh status says whether one runs (systemctl start hostmesh starts it); journalctl -u hostmesh says what ended it',
    },
  )
}

/** Whether a process runs; a zombie, which has ended and was not waited for by its parent, does not. */
function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    if (errorCode(error) === 'ESRCH') return false
  }
  try {
    return !/\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, 'latin1'))
  } catch {
    return true
  }
}

function askStatus(address: string): Promise<StatusDocument> {
  return fetchDocument(address, '/v1/status', (value): value is StatusDocument =>
    hasKey(value, 'pid', (pid) => typeof pid === 'number'),
  )
}
