/**
 * `hostmesh aggregator`: the aggregator as a service, until a signal ends it.
 */
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { setFlagsFromString } from 'node:v8'
import { systemClock } from '../lib/clock.ts'
import { createLog } from '../lib/log.ts'
import { connectSystemd, takeSystemdEnvironment } from '../lib/systemd.ts'
import { nameThread } from '../lib/thread-name.ts'
import { formatAddress } from '../model/address.ts'
import { startAggregator } from './aggregator.ts'
import { loadAggregatorConfig } from './config-load.ts'
import { openFleetStore } from './open-fleet-store.ts'
import { checkReport } from './report-schema.ts'

/**
 * How much the heap may grow between two full collections. V8 would let it become four times as large on a machine with
 * much memory; nearly all of what is allocated here are reports, which are garbage within a second.
 */
const HEAP_GROWTH_PERCENT = 30

/** The database in the directory of the store. */
const DATABASE = 'fleet.db'

/**
 * Serves until SIGTERM or SIGINT.
 * @throws MeshError as loadAggregatorConfig, startAggregator and openFleetStore
 */
export async function runAggregator(configPath: string): Promise<void> {
  nameThread('hostmesh-agg')
  // Before the thread of the store has a heap of its own.
  setFlagsFromString(`--heap-growing-percent=${HEAP_GROWTH_PERCENT}`)
  const environment = takeSystemdEnvironment()
  const config = loadAggregatorConfig(configPath)
  const log = createLog(config.log)
  const stopAsked = new Promise<string>((resolve) => {
    process.once('SIGTERM', resolve)
    process.once('SIGINT', resolve)
  })
  await using parts = new AsyncDisposableStack()
  using systemd = connectSystemd({ log, environment })
  const { directory, maxBytes, retention } = config.store
  const store = parts.use(
    await openFleetStore({
      path: join(directory, DATABASE),
      maxBytes,
      secondsMs: retention.seconds,
      minutesMs: retention.minutes,
      hoursMs: retention.hours,
      rebindAfterMs: config.reports.rebindAfter,
      clock: systemClock,
      log: log.child('store'),
    }),
  )
  const aggregator = parts.use(
    await startAggregator(config, {
      store,
      checkReport,
      dashboard: dashboardDirectory,
      log,
      clock: systemClock,
    }),
  )
  log.info('Serving the fleet', {
    api: formatAddress(aggregator.address),
    socket: config.listen.socket,
    reports: formatAddress(aggregator.reportAddress),
  })
  systemd.ready()
  systemd.status(`serving ${formatAddress(aggregator.address)}`)
  const signal = await stopAsked
  log.info('Stopping', { signal })
  systemd.stopping()
}

/** `dist/dashboard` of the package; sources and the bundle have the same depth below its root. */
const dashboardDirectory = fileURLToPath(new URL('../../dist/dashboard', import.meta.url))
