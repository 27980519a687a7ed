/**
 * TCP_NODELAY for the connections that a server accepts, without a system call for each.
 *
 * On Linux an accepted socket inherits the option from the listening one. Node's own `noDelay` sets it on every
 * socket anew, and offers no way to set it on the listener; so this one file reaches for the server's handle, and
 * takes Node's way where a runtime lacks what it looks for.
 */
import type { Server } from 'node:net'

/** For a server that listens. Connections that were accepted before are as they were. */
export function setNoDelayOfAccepted(server: Server): void {
  const handle: unknown = Reflect.get(server, '_handle')
  if (canSetNoDelay(handle) && handle.setNoDelay(true) === 0) return
  Reflect.set(server, 'noDelay', true)
}

/** Node's handle of a TCP socket; the answer is an error number of the kernel, 0 for none. */
interface TcpHandle {
  setNoDelay(enable: boolean): number
}

function canSetNoDelay(handle: unknown): handle is TcpHandle {
  return (
    typeof handle === 'object' &&
    handle !== null &&
    'setNoDelay' in handle &&
    typeof handle.setNoDelay === 'function'
  )
}
