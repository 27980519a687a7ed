/**
 * The loop that keeps what we have in the kernel: looks from time to time, and at once when something tells of a change.
 */
import { type FSWatcher, statSync, watch } from 'node:fs'
import { sleep } from '../../lib/abort.ts'
import { systemClock } from '../../lib/clock.ts'
import { WakeableLoop } from '../../lib/wakeable-loop.ts'
import type { WatchKernel } from './kernel-changes.ts'

/** Upkeep never runs more often than this, however many cgroups come and go. */
const MIN_UPKEEP_PAUSE_MS = 20

/** After a look at everything that a change has caused, the next such look waits this long: others may change much. */
const MIN_LOOK_PAUSE_MS = 250

/** A look because of what is most likely the echo of a change of ours may wait this long. */
const ECHO_LOOK_MS = 1_500

/** What takes longer than this is a host with tens of thousands of rules of others, not one that is busy. */
const LONG_LOOK_MS = 2_000
const LONG_LOOK_SHARE = 20

/** How long the next look at everything that nobody has asked for waits, after one that took so long: 5 % of a processor. */
export function pauseAfterLookMs(lookMs: number): number {
  return lookMs < LONG_LOOK_MS ? 0 : lookMs * LONG_LOOK_SHARE
}

/** A loop that runs until it is stopped. */
export interface Upkeep {
  stop(): void
}

/**
 * Calls `pass` every `everyMs`, and at once when something in a folder comes or goes or `watch` tells of a change; one call
 * at a time. `pass` is told how long ago everything was looked at, and says whether it has looked at everything now.
 */
export function startUpkeep(options: {
  readonly folders: readonly string[]
  readonly everyMs: number
  readonly watch: WatchKernel | undefined
  /** Whether what is heard now may be a change of ours. */
  readonly isOwn: () => boolean
  readonly pass: (sinceVerifyMs: number, isChanged: boolean) => Promise<boolean>
}): Upkeep {
  const { folders, everyMs } = options
  const stopped = new AbortController()
  const { signal } = stopped
  /** When everything is to be looked at because of what was heard. */
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
      const pauseMs = isChanged ? MIN_LOOK_PAUSE_MS : MIN_UPKEEP_PAUSE_MS
      await sleep(Math.min(pauseMs, everyMs), signal)
      // What came into a new folder before it was watched is seen by looking at once.
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
      // Not there, or no watch left on this host: the regular look finds the change.
    }
  }
  return isNew
}
