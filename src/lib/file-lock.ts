/**
 * An exclusive lock on a file, held by this process until it is released or the process ends, however it
 * ends: the kernel's flock(2), so that no stale lock can stay behind.
 */
import { closeSync, constants, openSync } from 'node:fs'
import { requireNativeCalls } from './native.ts'

/** Take it at once or not at all. */
const LOCK_EX_NB = 2 | 4

/**
 * Locks `path`, which is created (0600) if need be and never removed; undefined when another process, or
 * another part of this one, holds it.
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
