/**
 * What is dialed for a local service, and the header that tells its application who calls. Pure.
 */
import { type SocketAddress } from '../../model/address.ts'
import { encodeProxyHeader } from '../../model/proxy-header.ts'
import type { LocalService } from '../../model/service.ts'
import type { LocalDial } from './dial-local.ts'

/** TLV type of the calling service's name: of those that the PROXY protocol leaves to its users. */
export const TLV_CALLER = 0xe0

/** Who calls, as far as it is known. */
export interface Caller {
  /** Proven: by certificate, or on this host by the kernel. */
  readonly service: string
  /** The caller's own address; as its host says, if that is another one. */
  readonly address: SocketAddress | undefined
  /** What it dialed. */
  readonly wanted: SocketAddress | undefined
}

/** How `local` is dialed for `caller`; undefined when its application listens nowhere. */
export function localDial(local: LocalService, caller: Caller): LocalDial | undefined {
  const { target, delivery } = local
  if (target === undefined) return undefined
  if (delivery === undefined || (delivery.from === undefined && !delivery.proxyHeader))
    return { target }
  const header = delivery.proxyHeader
    ? encodeProxyHeader({
        source: caller.address,
        destination: caller.wanted ?? target,
        tlvs: [[TLV_CALLER, caller.service]],
      })
    : undefined
  return { target, from: delivery.from, header }
}
