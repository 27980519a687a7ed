/**
 * The counts under Istio's names: the same numbers, and every label that Istio's dashboards select by.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { TrafficCounters } from '../../src/telemetry/counters.ts'
import { createExposition } from '../../src/telemetry/exposition.ts'
import { istioMetrics } from '../../src/telemetry/istio-names.ts'
import { MetricsReader } from '../../src/telemetry/metrics-reader.ts'
import { WorkerTotals } from '../../src/telemetry/totals.ts'
import { quietHost } from './telemetry-fixtures.ts'

async function scrape(hasIstioNames: boolean): Promise<string> {
  const totals = new WorkerTotals()
  const traffic = new TrafficCounters(totals.attach(0).traffic, (row, labels) =>
    totals.announce(0, row, labels),
  )
  const row = traffic.row('source', 'web', 'db')
  for (let i = 0; i < 3; i += 1) traffic.opened(row)
  traffic.closed(row, '-', 1)
  traffic.closed(row, 'DENY', 1)
  traffic.sent(row, 100)
  traffic.received(row, 2_000)
  const reader = new MetricsReader({ version: '1', totals, host: () => quietHost })
  const others = hasIstioNames ? istioMetrics('dc1') : []
  return createExposition(() => reader.read(), others).metrics()
}

test('without the option there is none of them', async () => {
  assert.doesNotMatch(await scrape(false), /istio_/)
})

test('each has the number of the column that it is a copy of', async () => {
  const lines = (await scrape(true)).split('\n').filter((line) => line.startsWith('istio_'))
  const numbers = lines.map((line) => [
    line.slice(0, line.indexOf('{')),
    /response_flags="([^"]*)"/.exec(line)?.[1],
    Number(line.split(' ').at(-1)),
  ])
  assert.deepEqual(numbers, [
    ['istio_tcp_connections_opened_total', '-', 3],
    ['istio_tcp_connections_closed_total', '-', 1],
    ['istio_tcp_connections_closed_total', 'DENY', 1],
    ['istio_tcp_sent_bytes_total', '-', 100],
    ['istio_tcp_received_bytes_total', '-', 2_000],
  ])
})

test('the labels say what the host knows, and unknown for the rest', async () => {
  const line = (await scrape(true))
    .split('\n')
    .find((text) => text.startsWith('istio_tcp_sent_bytes_total{'))
  for (const label of [
    'reporter="source"',
    'source_workload="web"',
    'source_workload_namespace="default"',
    'source_canonical_service="web"',
    'source_cluster="dc1"',
    'destination_workload="db"',
    'destination_service="db"',
    'destination_service_name="db"',
    'destination_service_namespace="default"',
    'destination_cluster="unknown"',
    'destination_principal="unknown"',
    'request_protocol="tcp"',
    'connection_security_policy="unknown"',
  ])
    assert.ok(line?.includes(label), label)
})
