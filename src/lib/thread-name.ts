/**
 * Sets the name that `ss -p`, `ps`, `top -H` and systemd show for this thread; the main thread's name is the
 * process's. Node calls its threads `MainThread` and similar.
 */
import { writeFileSync } from 'node:fs'

/** Names the calling thread. The kernel keeps the first 15 bytes. Does nothing where the kernel does not allow it. */
export function nameThread(name: string): void {
  try {
    writeFileSync('/proc/thread-self/comm', name)
  } catch {
    // The name only helps people who look at the host; nothing depends on it.
  }
}
