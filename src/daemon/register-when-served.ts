/**
 * Registers the services of this host only when they can be served: a caller that connects before the certificate is
 * there fails in the handshake, one that connects before the intentions is denied, and neither would have connected
 * without the registration.
 *
 * All services are registered together if they are ready soon. After a timeout the ready ones are registered, so that a
 * service whose certificate never arrives (a missing right) affects only itself.
 */
import { setTimeout as sleep } from 'node:timers/promises'

import type { Catalog } from '../controlplane/catalog/catalog.ts'
import type { LocalService } from '../model/service.ts'

/** What to register, and when. */
export interface RegisterOptions {
  readonly registry: Pick<Catalog, 'register'>
  readonly services: readonly LocalService[]
  readonly tunnelPort: number
  /** Whether a caller of this service would be served now. */
  readonly canServe: (service: LocalService) => boolean
  /** Ends the wait; nothing is registered afterwards. */
  readonly signal: AbortSignal
  /** How long ready services wait for the others, milliseconds. */
  readonly timeoutMs?: number
}

/** A leaf of Consul takes at most a second or two; a longer wait means a missing right or an outage. */
const DEFAULT_TIMEOUT_MS = 10_000

/** Interval of the checks, milliseconds; a check costs a few map lookups. */
const LOOK_MS = 50

/** Registers each service once it can be served. Returns when all are registered or the signal is aborted. */
export async function registerWhenServed(options: RegisterOptions): Promise<void> {
  const {
    registry,
    services,
    tunnelPort,
    canServe,
    signal,
    timeoutMs = DEFAULT_TIMEOUT_MS,
  } = options
  const timeoutAtMs = performance.now() + timeoutMs
  // An empty list is registered, too: it removes what a crashed daemon left registered.
  let registered = -1
  while (!signal.aborted) {
    const ready = services.filter(canServe)
    const isComplete = ready.length === services.length
    const mayGoAhead = isComplete || (ready.length > 0 && performance.now() >= timeoutAtMs)
    if (mayGoAhead && ready.length > registered) {
      await registry.register(ready, tunnelPort)
      registered = ready.length
    }
    if (isComplete) return
    await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined)
  }
}
