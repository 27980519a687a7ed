/** Claims about the benchmark's arithmetic: medians, ratios to the best peer, verdicts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { array, assert as assertProperty, integer, property } from 'fast-check'
import { best, median, type Sample, toRows } from '../../bench/measure/statistics.ts'
import { judge } from '../../bench/measure/verdicts.ts'
import { METRICS, type MetricName } from '../../bench/metrics.ts'
import { SCENARIOS } from '../../bench/scenario-names.ts'
import { JUDGED, type SubjectName } from '../../bench/subject-names.ts'
import { TARGETS } from '../../bench/targets.ts'

function requests(subject: SubjectName, requestsPerSecond: number, p99 = 1_000): Sample {
  return { scenario: 'requests-64', subject, reading: { requestsPerSecond, p99 } }
}

function ratio(samples: readonly Sample[], subject: SubjectName, metric: MetricName) {
  return toRows(samples).find((row) => row.subject === subject && row.metric === metric)
    ?.ratioToBestPeer
}

test('the median is the middle value, or the mean of the two middle ones, in any order', () => {
  assert.equal(median([3, 1, 2]), 2)
  assert.equal(median([4, 1, 3, 2]), 2.5)
  assert.equal(median([7]), 7)
  assert.throws(() => median([]), RangeError)
  assertProperty(
    property(array(integer(), { minLength: 1 }), (values) => {
      const middle = median(values)
      assert.ok(values.filter((value) => value <= middle).length * 2 >= values.length)
      assert.ok(values.filter((value) => value >= middle).length * 2 >= values.length)
    }),
  )
})

test('the best is the most of a rate and the least of a time', () => {
  assert.equal(best('requestsPerSecond', [1, 3, 2]), 3)
  assert.equal(best('p99', [1, 3, 2]), 1)
  assert.equal(best('p99', []), undefined)
})

test('a ratio is the median divided by the best median of the peers, whoever that is', () => {
  const samples = [
    requests('haproxy', 20_000, 900),
    requests('nginx', 25_000, 1_000),
    requests('hostmesh-upstream', 40_000, 450),
    requests('hostmesh-upstream', 50_000, 450),
    requests('hostmesh-upstream', 60_000, 450),
  ]
  assert.equal(ratio(samples, 'hostmesh-upstream', 'requestsPerSecond'), 2)
  assert.equal(ratio(samples, 'hostmesh-upstream', 'p99'), 0.5)
  assert.equal(ratio(samples, 'haproxy', 'requestsPerSecond'), 0.8)
  assert.equal(ratio(samples, 'nginx', 'requestsPerSecond'), 1)
})

test('neither the run without proxy nor hostmesh itself is a peer', () => {
  const samples = [
    requests('direct', 200_000),
    requests('haproxy', 20_000),
    requests('hostmesh-capture', 90_000),
    requests('hostmesh-upstream', 30_000),
  ]
  assert.equal(ratio(samples, 'hostmesh-upstream', 'requestsPerSecond'), 1.5)
})

test('without a peer there is no ratio', () => {
  assert.equal(
    ratio([requests('hostmesh-upstream', 30_000)], 'hostmesh-upstream', 'requestsPerSecond'),
    null,
  )
})

test('a row has the median, least and most of all samples', () => {
  const [row] = toRows([requests('nginx', 10), requests('nginx', 30), requests('nginx', 14)])
  assert.deepEqual(row, {
    scenario: 'requests-64',
    subject: 'nginx',
    metric: 'requestsPerSecond',
    unit: '1/s',
    median: 14,
    min: 10,
    max: 30,
    samples: 3,
    ratioToBestPeer: 1,
  })
})

test('a subject without a figure has no row for it', () => {
  const rows = toRows([{ scenario: 'bulk', subject: 'direct', reading: { throughput: 2 } }])
  assert.deepEqual(
    rows.map((row) => row.metric),
    ['throughput'],
  )
})

test('a verdict turns at its bound: at least for rates, at most for times', () => {
  const verdictFor = (requestsPerSecond: number, p99: number) => {
    const verdicts = judge(
      toRows([requests('haproxy', 10_000), requests('hostmesh-upstream', requestsPerSecond, p99)]),
      ['hostmesh-upstream'],
    )
    return Object.fromEntries(
      verdicts.map(({ target, passed, aimReached }) => [target.metric, { passed, aimReached }]),
    )
  }
  assert.deepEqual(verdictFor(11_000, 1_000), {
    requestsPerSecond: { passed: true, aimReached: false },
    p99: { passed: true, aimReached: false },
  })
  assert.deepEqual(verdictFor(10_990, 1_010), {
    requestsPerSecond: { passed: false, aimReached: false },
    p99: { passed: false, aimReached: false },
  })
  assert.deepEqual(verdictFor(15_000, 700), {
    requestsPerSecond: { passed: true, aimReached: true },
    p99: { passed: true, aimReached: true },
  })
})

test('new connections are also held against the peers that shake hands for each', () => {
  const connections = (subject: SubjectName, connectionsPerSecond: number): Sample => ({
    scenario: 'connections',
    subject,
    reading: { connectionsPerSecond },
  })
  const verdicts = judge(
    toRows([
      connections('haproxy', 1_000),
      connections('envoy-h2', 5_000),
      connections('hostmesh-upstream', 6_000),
    ]),
    ['hostmesh-upstream'],
  )
  assert.deepEqual(
    verdicts.map(({ target, value }) => [target.against, value]),
    [
      ['best-peer', 1.2],
      ['tls-per-connection', 6],
    ],
  )
})

test('memory is judged by itself, with or without peers', () => {
  const [verdict] = judge(
    toRows([
      {
        scenario: 'memory',
        subject: 'hostmesh-capture',
        reading: { rssIdle: 121, rssPerConnection: 9 },
      },
    ]),
    ['hostmesh-capture'],
  )
  assert.equal(verdict?.value, 121)
  assert.equal(verdict?.passed, false)
})

test('every target is about a figure that its scenario yields, and its aim is not below its must', () => {
  for (const { scenario, metric, must, aim } of TARGETS) {
    const metrics: readonly MetricName[] = SCENARIOS[scenario].metrics
    assert.ok(metrics.includes(metric), `${scenario} yields no ${metric}`)
    assert.ok(
      METRICS[metric].better === 'higher' ? aim >= must : aim <= must,
      `${scenario} ${metric}`,
    )
  }
})

test('what is captured is held against the explicit port, and only that', () => {
  const rows = toRows([
    requests('hostmesh-capture', 28_200),
    requests('hostmesh-capture-instance', 28_190),
    requests('hostmesh-upstream', 30_000),
  ])
  const verdicts = judge(rows, JUDGED).filter(({ target }) => target.against === 'explicit-port')
  assert.deepEqual(
    verdicts.map(({ subject, passed }) => [subject, passed]),
    [
      ['hostmesh-capture', true],
      ['hostmesh-capture-instance', false],
    ],
  )
  const alone = judge(toRows([requests('hostmesh-capture', 28_200)]), JUDGED)
  assert.deepEqual(alone, [])
})
