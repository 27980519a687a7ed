/**
 * TCP state that the kernel has and Node does not expose: when the other host's kernel last acknowledged.
 */
import type { Socket } from 'node:net'
import { IPPROTO_TCP, nativeCalls } from '../../lib/native.ts'
import { descriptorOf } from '../../lib/node-internals.ts'

const TCP_INFO = 11

/** Bytes of struct tcp_info up to tcpi_last_ack_recv, and its offset: the kernel fills in as much as has room. */
const BYTES = 60
const LAST_ACK_AT = 56

const info = new DataView(new ArrayBuffer(BYTES))
const value = new Uint8Array(info.buffer)
const length = new Uint32Array(1)

/**
 * Milliseconds since the other host last acknowledged anything: as far as this host can tell, nothing sent later has
 * arrived. Undefined when the kernel cannot be asked.
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
