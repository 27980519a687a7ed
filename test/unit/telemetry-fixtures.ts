/**
 * A host of which there is nothing to tell.
 */
import type { HostReading } from '../../src/telemetry/host-reading.ts'

export const quietHost: HostReading = {
  ready: false,
  serving: false,
  problems: new Map(),
  snapshotVersion: 0,
  catalogLastSuccessMs: undefined,
  state: { parts: [], problems: [] },
  consulLastContactMs: undefined,
  captureInSync: undefined,
  reports: [],
  dnsQueries: undefined,
  watchedServices: 0,
  certificates: [],
  workersRunning: 0,
  workerRestarts: 0,
  logLinesLost: 0,
  accessLinesLost: 0,
  eventLoopLagMs: 0,
}
