/**
 * The name that `ss -p`, `ps`, `top -H` and systemd show for this thread; that of the main thread is the
 * process's. Node calls its threads `MainThread` and the like.
 */
import { writeFileSync } from 'node:fs'

/** Names the calling thread. The kernel keeps the first 15 bytes. Does nothing where the kernel does not allow it. */
export function nameThread(name: string): void {
  try {
    writeFileSync('/proc/thread-self/comm', name)
  } catch {
    // A name is a courtesy to whoever looks; no host without it is worse off.
  }
}
