/**
 * Whether this daemon is stopped for good or for a restart: the signal is the same, the service manager's job differs.
 */
import { execFile } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { promisify } from 'node:util'
import { describeError } from '../lib/errors.ts'
import type { Log } from '../lib/log.ts'

/** systemd answers in milliseconds. */
const ASK_TIMEOUT_MS = 1_000

/** Asks systemd; false outside systemd and when it does not answer. */
export async function isRestarting(log: Log): Promise<boolean> {
  const unit = unitOf(readFileSync('/proc/self/cgroup', 'utf8'))
  if (unit === undefined) return false
  try {
    const { stdout } = await promisify(execFile)(
      'systemctl',
      ['list-jobs', '--plain', '--no-legend', '--no-pager'],
      { timeout: ASK_TIMEOUT_MS },
    )
    return isRestartQueued(stdout, unit)
  } catch (error) {
    log.warn('Cannot ask systemd whether this is a restart: it is taken for a stop', {
      error: describeError(error),
    })
    return false
  }
}

/** The unit of a process, from the text of its /proc/PID/cgroup; undefined when it belongs to no service. */
export function unitOf(cgroups: string): string | undefined {
  // Version 2 has one line; a hybrid system has a separate line for systemd.
  return /^(?:0:|\d+:name=systemd):.*\/([^/\n]+\.service)$/m.exec(cgroups)?.[1]
}

/** Whether the output of `systemctl list-jobs` has a restart job of the unit: `97 hostmesh.service restart running`. */
export function isRestartQueued(jobs: string, unit: string): boolean {
  return jobs.split('\n').some((line) => {
    const [, name, type] = line.trim().split(/\s+/)
    return name === unit && type === 'restart'
  })
}
