/**
 * What the kernel knows of a TCP connection and Node does not say: when the other host's kernel was last heard of.
 */
import type { Socket } from 'node:net'
import { IPPROTO_TCP, nativeCalls } from '../../lib/native.ts'
import { descriptorOf } from '../../lib/node-internals.ts'

const TCP_INFO = 11

/** struct tcp_info up to tcpi_last_ack_recv, and where that is: the kernel fills in as much as it is given room for. */
const BYTES = 60
const LAST_ACK_AT = 56

const info = new DataView(new ArrayBuffer(BYTES))
const value = new Uint8Array(info.buffer)
const length = new Uint32Array(1)

/**
 * How long ago the other host acknowledged anything, milliseconds: what was sent later has not arrived, as far as anybody
 * on this host can know. Undefined when the kernel cannot be asked.
 */
export function sinceLastAckMs(socket: Socket): number | undefined {
  const calls = nativeCalls()
  const fd = descriptorOf(socket)
  if (calls === undefined || fd < 0) return undefined
  length[0] = BYTES
  if (calls.getsockopt(fd, IPPROTO_TCP, TCP_INFO, value, length) !== 0 || length[0] < BYTES)
    return undefined
  return info.getUint32(LAST_ACK_AT, true)
}
