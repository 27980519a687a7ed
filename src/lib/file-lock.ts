/**
 * An exclusive lock on a file, held by this process until it is released or the process ends, for any
 * reason: the kernel's flock(2), so that no stale lock can remain.
 */
import { closeSync, constants, openSync } from 'node:fs'
import { requireNativeCalls } from './native.ts'

/** Lock at once or fail. */
const LOCK_EX_NB = 2 | 4

/**
 * Locks `path`, which is created (0600) if necessary and never removed; undefined when another process, or
 * another part of this one, holds the lock.
 * @throws what node:fs throws, MeshError HM_FFI_UNAVAILABLE
 */
export function tryLockFile(path: string): Disposable | undefined {
  const descriptor = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
  let isHeld = false
  try {
    isHeld = requireNativeCalls('locks files').flock(descriptor, LOCK_EX_NB) === 0
  } finally {
    if (!isHeld) closeSync(descriptor)
  }
  if (!isHeld) return undefined
  return {
    [Symbol.dispose]() {
      if (!isHeld) return
      isHeld = false
      closeSync(descriptor)
    },
  }
}
