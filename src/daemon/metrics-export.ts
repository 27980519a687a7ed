/**
 * The metrics of a daemon, for scrapes and to an OTLP endpoint: what is exported, and under which names.
 */
import type { Config } from '../config/schema.ts'
import type { Log } from '../lib/log.ts'
import { createExposition, type Exposition } from '../telemetry/exposition.ts'
import { istioMetrics } from '../telemetry/istio-names.ts'
import { MetricsReader } from '../telemetry/metrics-reader.ts'
import { OtlpExport } from '../telemetry/otlp/exporter.ts'
import type { WorkerTotals } from '../telemetry/totals.ts'
import { type Host, readMetrics } from './host.ts'

/** What the export of metrics needs of a daemon. */
export interface MetricsExportOptions {
  readonly config: Config
  readonly host: Host
  readonly totals: WorkerTotals
  readonly log: Log
  /** Ends the export by OTLP. */
  readonly owner: Pick<AsyncDisposableStack, 'use'>
}

/** Starts the export by OTLP, if there is an endpoint; returns the text for scrapes. */
export function exportMetrics({
  config,
  host,
  totals,
  log,
  owner,
}: MetricsExportOptions): Exposition {
  const { metrics, datacenter } = config
  const { version, startedAtMs } = host
  let otlp: OtlpExport | undefined
  const reader = new MetricsReader({
    version,
    totals,
    host: () => ({ ...readMetrics(host), otlp: otlp?.counts() }),
  })
  const read = () => reader.read()
  const others = metrics.istioNames ? istioMetrics(datacenter) : []
  if (metrics.otlp !== undefined) {
    const { endpoint, interval, protocol, headers } = metrics.otlp
    otlp = new OtlpExport({
      url: endpoint,
      protocol,
      headers,
      intervalMs: interval,
      version,
      startMs: startedAtMs,
      resource: () => resourceOf(host.now().node, datacenter, version),
      read,
      others,
      log: log.child('otlp'),
    })
    owner.use(otlp)
  }
  return createExposition(read, others)
}

/** https://opentelemetry.io/docs/specs/semconv/resource/ */
function resourceOf(
  node: string,
  datacenter: string,
  version: string,
): Readonly<Record<string, string>> {
  return {
    'service.name': 'hostmesh',
    'service.version': version,
    'service.instance.id': node,
    'host.name': node,
    'hostmesh.datacenter': datacenter,
  }
}
