/**
 * The pairs of a host from two readings of its metrics.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { graphBetween, type MetricsReading, readPairs } from '../../src/cli/host-edges.ts'

/** A reading with these samples; a name without labels is of the pair web -> db, as its host counts it. */
function reading(atMs: number, samples: readonly (readonly [string, number])[]): MetricsReading {
  const lines = samples.map(([name, value]) => {
    const [family = '', more = ''] = name.split(' ')
    const labels = `reporter="source",source_service="web",destination_service="db"${more}`
    return name.includes('{') ? `${name} ${value}` : `${family}{${labels}} ${value}`
  })
  return { atMs, pairs: readPairs(`# HELP x y\n${lines.join('\n')}\n`) }
}

const opened = 'hostmesh_tcp_connections_opened_total'
const closed = 'hostmesh_tcp_connections_closed_total'
const bucket = 'hostmesh_tcp_connection_duration_seconds_bucket'

test('rates, endings and quantiles are those of the span', () => {
  const before = reading(1_000, [
    [opened, 100],
    [`${closed} ,response_flags="-"`, 90],
    [`${closed} ,response_flags="UF"`, 5],
    [`${bucket} ,le="0.1"`, 90],
    [`${bucket} ,le="1"`, 95],
    [`${bucket} ,le="+Inf"`, 95],
  ])
  const now = reading(3_000, [
    [opened, 110],
    [`${closed} ,response_flags="-"`, 96],
    [`${closed} ,response_flags="UF"`, 7],
    [`${bucket} ,le="0.1"`, 90],
    [`${bucket} ,le="1"`, 101],
    [`${bucket} ,le="+Inf"`, 103],
    ['hostmesh_tcp_connections_active', 4],
    ['hostmesh_tcp_sent_bytes_total', 2_000],
  ])
  const { edges, coverage } = graphBetween(before, now, 'now')
  assert.equal(coverage.windowMs, 2_000)
  const [edge] = edges
  assert.ok(edge !== undefined && edges.length === 1)
  assert.deepEqual([edge.source, edge.destination, edge.policy], ['web', 'db', null])
  assert.equal(edge.traffic.openedPerSecond, 5)
  assert.deepEqual(edge.traffic.closed, { '-': 6, UF: 2 })
  assert.equal(edge.traffic.errorShare, 0.25)
  assert.equal(edge.traffic.active, 4)
  assert.equal(edge.traffic.sentBytesPerSecond, 1_000)
  assert.deepEqual(edge.traffic.durationMs, { p50: 1_000, p90: 1_000, p99: 1_000 })
  assert.equal(edge.traffic.connectMs, null)
})

test('of a pair that this host has counted on both sides the called side is shown', () => {
  const side = (reporter: string, value: number): [string, number] => [
    `${opened}{reporter="${reporter}",source_service="web",destination_service="db"}`,
    value,
  ]
  const graph = graphBetween(
    reading(0, []),
    reading(1_000, [side('source', 9), side('destination', 3)]),
    'now',
  )
  assert.deepEqual(
    graph.edges.map(({ reporter, traffic }) => [reporter, traffic.openedPerSecond]),
    [['destination', 3]],
  )
})

test('a daemon that was restarted meanwhile counts from zero, not below', () => {
  const [edge] = graphBetween(
    reading(0, [[opened, 50]]),
    reading(1_000, [[opened, 2]]),
    'now',
  ).edges
  assert.equal(edge?.traffic.openedPerSecond, 0)
})
