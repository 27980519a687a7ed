/**
 * Who is at the other end of a unix socket, as the kernel says (unix(7), SO_PEERCRED and SO_PEERGROUPS): the user and
 * groups of the process at the moment when it connected. Nothing that the caller sends is involved.
 */
import type { Socket } from 'node:net'
import { nativeCalls, SOL_SOCKET } from './native.ts'
import { descriptorOf } from './node-internals.ts'

const SO_PEERCRED = 17
const SO_PEERGROUPS = 59

/** More groups than any user has; a kernel answers ERANGE for more, and then only the first group counts. */
const MAX_GROUPS = 1_024

/** A process at the other end. */
export interface PeerCredentials {
  readonly pid: number
  readonly uid: number
  /** The effective group, then the supplementary ones as far as the kernel says. */
  readonly gids: readonly number[]
}

/** The process that connected; undefined for a closed or other socket, and where native calls are not available. */
export function peerCredentials(socket: Socket): PeerCredentials | undefined {
  const calls = nativeCalls()
  const fd = descriptorOf(socket)
  if (calls === undefined || fd < 0) return undefined
  const credentials = new Int32Array(3)
  const length = new Uint32Array([credentials.byteLength])
  if (calls.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, credentials, length) !== 0) return undefined
  const [pid = 0, uid = -1, gid = -1] = credentials
  // pid 0 and uid -1: not a unix socket, or a peer in another user namespace.
  if (length[0] !== credentials.byteLength || pid <= 0 || uid < 0 || gid < 0) return undefined
  const groups = new Int32Array(MAX_GROUPS)
  const groupBytes = new Uint32Array([groups.byteLength])
  const hasGroups = calls.getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, groupBytes) === 0
  const count = hasGroups ? (groupBytes[0] ?? 0) / Int32Array.BYTES_PER_ELEMENT : 0
  return { pid, uid, gids: [gid, ...groups.subarray(0, count)] }
}
