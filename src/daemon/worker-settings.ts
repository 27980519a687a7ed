/**
 * What a data-plane worker is told of the configuration and of the process it runs in.
 */
import type { Config } from '../config/schema.ts'
import type { ChosenBackend } from '../controlplane/capture/backend.ts'
import { loopbackFamilies } from '../controlplane/capture/routing.ts'
import { backendTraits } from '../model/capture-backend.ts'
import type { LocalService } from '../model/service.ts'
import { readProcessLimits, tunnelShare, workerShare } from './resources.ts'
import type { WorkerPoolOptions } from './worker-pool.ts'

/** Workers tell which services are in use so many times within the time after which unused ones are let go. */
const USES_TOLD = 10

/** They tell at least this often, milliseconds: the order of use says whose turn it is when too many are followed. */
const MAX_TELL_USE_MS = 30_000

/** The settings of every worker of this host. */
export function workerSettings(
  config: Config,
  services: readonly LocalService[],
  backend: ChosenBackend | undefined,
): WorkerPoolOptions['settings'] {
  const { timeouts, limits } = config
  const processLimits = readProcessLimits()
  const isTransparent = backend !== undefined && backendTraits[backend.kind].divertsBy === 'tproxy'
  // REDIRECT leads containers to the address of their bridge; everybody else comes to loopback.
  const needsAnyAddress =
    !isTransparent && services.some(({ selector }) => selector?.kind === 'sourceAddress')
  return {
    datacenter: config.datacenter,
    services,
    captures: config.capture.mode === 'on',
    captureAddresses: needsAnyAddress ? ['::'] : loopbackAddresses(),
    capturesTransparently: isTransparent,
    tunnel: { ip: config.tunnel.address, port: config.tunnel.port },
    inboundMinVersion: config.tunnel.inboundMinVersion,
    timeouts: {
      connectMs: timeouts.connect,
      handshakeMs: timeouts.handshake,
      idleMs: timeouts.idle,
      halfClosedMs: timeouts.halfClosed,
      tunnelIdleMs: timeouts.tunnelIdle,
      keepaliveMs: timeouts.keepalive,
    },
    limits: {
      ...limits,
      ...workerShare(processLimits, config.workers, limits.heldMiB),
      ...tunnelShare(processLimits, config.workers, limits),
    },
    tellUseMs:
      config.catalog.kind === 'consul'
        ? Math.min(MAX_TELL_USE_MS, config.catalog.unusedAfter / USES_TOLD)
        : MAX_TELL_USE_MS,
    log: config.log,
  }
}

/** Where capture ports listen; IPv6 may be switched off. */
function loopbackAddresses(): string[] {
  return loopbackFamilies().map((family) => (family === 'v4' ? '127.0.0.1' : '::1'))
}
