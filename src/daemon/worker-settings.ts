/**
 * The settings of the data-plane workers, from the configuration and the limits of the process.
 */
import type { Config } from '../config/schema.ts'
import type { ChosenBackend } from '../controlplane/capture/backend.ts'
import { loopbackFamilies } from '../controlplane/capture/routing.ts'
import { backendTraits } from '../model/capture-backend.ts'
import type { LocalService } from '../model/service.ts'
import type { PooledWorkerOptions } from './pooled-worker.ts'
import { readProcessLimits, tunnelShare, workerShare } from './resources.ts'

/** Number of times that workers report services in use within the time after which unused services are dropped. */
const REPORTS_PER_IDLE_TIME = 10

/** Longest interval of these reports, milliseconds: their order decides what to drop when too many are followed. */
const MAX_REPORT_USE_MS = 30_000

/** The settings of every worker of this host. */
export function workerSettings(
  config: Config,
  services: readonly LocalService[],
  backend: ChosenBackend | undefined,
): PooledWorkerOptions['settings'] {
  const { timeouts, limits } = config
  const processLimits = readProcessLimits()
  const isTransparent = backend !== undefined && backendTraits[backend.kind].divertsBy === 'tproxy'
  // REDIRECT sends containers to the address of their bridge, and all other callers to loopback.
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
    reportUseMs:
      config.catalog.kind === 'consul'
        ? Math.min(MAX_REPORT_USE_MS, config.catalog.unusedAfter / REPORTS_PER_IDLE_TIME)
        : MAX_REPORT_USE_MS,
    log: config.log,
    accessLog: accessLogSettings(config),
  }
}

function accessLogSettings({
  accessLog,
  workers,
}: Config): PooledWorkerOptions['settings']['accessLog'] {
  const { mode, to, format, include, sample, linesPerSecond } = accessLog
  if (mode === 'off') return undefined
  return {
    format,
    include,
    sample,
    linesPerSecond: Math.max(1, linesPerSecond / workers),
    to: to === 'journal' ? 'standardError' : 'mainThread',
  }
}

/** The listen addresses of capture ports; IPv6 may be disabled. */
function loopbackAddresses(): string[] {
  return loopbackFamilies().map((family) => (family === 'v4' ? '127.0.0.1' : '::1'))
}
