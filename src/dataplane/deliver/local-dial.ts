/**
 * How to dial a local service, and the header that reports the caller to its application. Pure.
 */
import { type SocketAddress } from '../../model/address.ts'
import { encodeProxyHeader } from '../../model/proxy-header.ts'
import type { LocalService } from '../../model/service.ts'
import type { LocalDial } from './dial-local.ts'

/** TLV type of the calling service's name, from the range that the PROXY protocol reserves for its users. */
export const TLV_CALLER = 0xe0

/** What is known of the caller. */
export interface Caller {
  /** Proven by certificate, or on this host by the kernel. */
  readonly service: string
  /** The caller's own address; for a caller on another host, as that host reports it. */
  readonly address: SocketAddress | undefined
  /** The address that the caller dialed. */
  readonly originalDestination: SocketAddress | undefined
}

/** How to dial `local` for `caller`; undefined when its application does not listen. */
export function localDial(local: LocalService, caller: Caller): LocalDial | undefined {
  const { target, delivery } = local
  if (target === undefined) return undefined
  if (delivery === undefined || (delivery.from === undefined && !delivery.proxyHeader))
    return { target }
  const header = delivery.proxyHeader
    ? encodeProxyHeader({
        source: caller.address,
        destination: caller.originalDestination ?? target,
        tlvs: [[TLV_CALLER, caller.service]],
      })
    : undefined
  return { target, from: delivery.from, header }
}
