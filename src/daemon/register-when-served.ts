/**
 * Makes the services of this host known to callers only when they can be served: a caller that comes before
 * the certificate is refused in the handshake, one that comes before the intentions is denied, and neither
 * would have come here but for the registration.
 *
 * All of them at once while that is near; after a while those that are ready go ahead, so that a service
 * whose certificate does not come (a missing right) costs that service.
 */
import { setTimeout as sleep } from 'node:timers/promises'

import type { Catalog } from '../controlplane/catalog/catalog.ts'
import type { LocalService } from '../model/service.ts'

/** What is registered, and what it waits for. */
export interface RegisterOptions {
  readonly registry: Pick<Catalog, 'register'>
  readonly services: readonly LocalService[]
  readonly tunnelPort: number
  /** Whether a caller of this service would be served now. */
  readonly canServe: (service: LocalService) => boolean
  /** Ends the waiting: nothing is registered from then on. */
  readonly signal: AbortSignal
  /** Milliseconds that services which are ready wait for the others. */
  readonly patienceMs?: number
}

/** A leaf of Consul takes a second or two at most; longer is a right that is missing, or an outage. */
const PATIENCE_MS = 10_000

/** A look costs a few map lookups. */
const LOOK_MS = 50

/** Registers each service once it can be served. Returns when all are, or when the signal says stop. */
export async function registerWhenServed(options: RegisterOptions): Promise<void> {
  const { registry, services, tunnelPort, canServe, signal, patienceMs = PATIENCE_MS } = options
  const patienceEndsAtMs = performance.now() + patienceMs
  // With nothing to register the registry is told so: it takes back what a crash left behind.
  let registered = -1
  while (!signal.aborted) {
    const ready = services.filter(canServe)
    const isComplete = ready.length === services.length
    const mayGoAhead = isComplete || (ready.length > 0 && performance.now() >= patienceEndsAtMs)
    if (mayGoAhead && ready.length > registered) {
      await registry.register(ready, tunnelPort)
      registered = ready.length
    }
    if (isComplete) return
    await sleep(LOOK_MS, undefined, { signal }).catch(() => undefined)
  }
}
