/**
 * No proxy at all: what the load, the link and the backend alone can do. For orientation, not a peer.
 */
import { BACKEND_PORT } from '../site/backend.ts'
import { ADDRESS_B } from '../site/namespaces.ts'
import type { Subject } from './subject.ts'

/** The load talks with the backend across the link, in plaintext. */
export const direct: Subject = {
  name: 'direct',
  entry: { host: ADDRESS_B, port: BACKEND_PORT },
  backendAddress: ADDRESS_B,
  absent: () => undefined,
  version: () => Promise.resolve('no proxy'),
  start: () => Promise.resolve(),
}
