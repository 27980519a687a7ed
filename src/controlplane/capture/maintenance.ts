/**
 * The loop that maintains our state in the kernel: checks it at intervals, and at once when a change is reported.
 */
import { type FSWatcher, statSync, watch } from 'node:fs'
import { sleep } from '../../lib/abort.ts'
import { systemClock } from '../../lib/clock.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import type { WatchKernel } from './kernel-changes.ts'

/** Least pause between two passes, however often cgroups change. Milliseconds. */
const MIN_PASS_PAUSE_MS = 20

/** Least pause between two full checks that reported changes cause: other programs may change much. Milliseconds. */
const MIN_LOOK_PAUSE_MS = 250

/** Maximum delay of a full check for a report that most likely concerns a change of our own. Milliseconds. */
const ECHO_LOOK_MS = 1_500

/** A longer check means a host with tens of thousands of foreign rules, not merely a busy one. Milliseconds. */
const LONG_LOOK_MS = 2_000
const LONG_LOOK_SHARE = 20

/** Pause before the next regular full check, after one of this duration: at most 5 % of a processor. Milliseconds. */
export function pauseAfterCheckMs(lookMs: number): number {
  return lookMs < LONG_LOOK_MS ? 0 : lookMs * LONG_LOOK_SHARE
}

/** A loop that runs until it is stopped. */
export interface Maintenance {
  stop(): void
}

/**
 * Calls `pass` every `everyMs`, and at once when a folder's content changes or `watch` reports a change; one call at a
 * time. `pass` receives the time since the last full check, and returns whether it has made one.
 */
export function startMaintenance(options: {
  readonly folders: readonly string[]
  readonly everyMs: number
  readonly watch: WatchKernel | undefined
  /** Whether a change reported now may be our own. */
  readonly isOwn: () => boolean
  readonly pass: (sinceVerifyMs: number, isChanged: boolean) => Promise<boolean>
}): Maintenance {
  const { folders, everyMs } = options
  const stopped = new AbortController()
  const { signal } = stopped
  /** When a full check is due because of a report. */
  let lookAt = Infinity
  let verifiedAt = performance.now()
  const watchers = new Map<string, WatchedFolder>()
  const wake = (): void => loop.wake()
  const loop = new WakeableLoop({
    clock: systemClock,
    signal,
    firstPauseMs: watchFolders(folders, watchers, wake) ? 0 : everyMs,
    async pass() {
      const isChanged = lookAt <= performance.now()
      if (isChanged) lookAt = Infinity
      if (await options.pass(performance.now() - verifiedAt, isChanged))
        verifiedAt = performance.now()
      const pauseMs = isChanged ? MIN_LOOK_PAUSE_MS : MIN_PASS_PAUSE_MS
      await sleep(Math.min(pauseMs, everyMs), signal)
      // Entries created in a new folder before it was watched are found by an immediate pass.
      if (signal.aborted || watchFolders(folders, watchers, wake)) return 0
      return Math.min(everyMs, Math.max(0, lookAt - performance.now()))
    },
  })
  const kernel = options.watch?.(() => {
    lookAt = Math.min(lookAt, performance.now() + (options.isOwn() ? ECHO_LOOK_MS : 0))
    wake()
  })
  return {
    stop: () => {
      stopped.abort()
      kernel?.[Symbol.dispose]()
      for (const { watcher } of watchers.values()) watcher.close()
    },
  }
}

interface WatchedFolder {
  readonly watcher: FSWatcher
  readonly inode: number
}

/** Watches each folder as it is now. Returns whether there is a new one. */
function watchFolders(
  folders: readonly string[],
  watchers: Map<string, WatchedFolder>,
  onEvent: () => void,
): boolean {
  let isNew = false
  for (const folder of folders) {
    try {
      const inode = statSync(folder).ino
      const known = watchers.get(folder)
      if (known?.inode === inode) continue
      known?.watcher.close()
      const watcher = watch(folder, { persistent: false }, onEvent)
      watcher.on('error', () => watcher.close())
      watchers.set(folder, { watcher, inode })
      isNew = true
    } catch {
      // The folder is missing, or the host has no watch left: the regular check finds the change.
    }
  }
  return isNew
}
