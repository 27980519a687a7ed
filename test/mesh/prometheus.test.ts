/**
 * A real Prometheus finds the hosts by Consul with the configuration of docs/metrics.md, takes what they export, and
 * evaluates the rules of `monitoring`.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { CONSUL_HOST } from '../harness/consul.ts'
import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'
import { OwnedProcess } from '../harness/owned-process.ts'

const root = join(import.meta.dirname, '../..')
/** Debian's bookworm builds its own without discovery by Consul: scripts/setup/fetch-prometheus.sh. */
const prometheus = join(root, '.cache/prometheus/prometheus')
const PORT = 9_464

/** Prints what is posted to it. */
const COLLECTOR = `
  require('node:http').createServer((request, response) => {
    request.pipe(require('node:zlib').createGunzip()).pipe(process.stdout, { end: false })
    request.on('end', () => response.end('{}'))
  }).listen(4318, '127.0.0.1')`

interface QueryAnswer {
  readonly status: string
  readonly data: {
    readonly result: readonly {
      readonly metric: Readonly<Record<string, string>>
      readonly value: readonly [number, string]
    }[]
  }
}

interface RulesAnswer {
  readonly data: {
    readonly groups: readonly {
      readonly rules: readonly {
        readonly name: string
        readonly health: string
        readonly lastError?: string
      }[]
    }[]
  }
}

/** The scrape configuration of docs/metrics.md. */
function documentedConfiguration(): string {
  const doc = readFileSync(join(root, 'docs/metrics.md'), 'utf8')
  const found = /```yaml\n# Prometheus\n([\s\S]*?)```/.exec(doc)?.[1]
  assert.ok(found !== undefined)
  return found
}

test('Prometheus finds the hosts by Consul and takes what they export', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'consul',
    capture: 'off',
    config: { metrics: { port: PORT, istioNames: true } },
  })
  // One host at all addresses, one at its own, and `c` where others cannot reach it.
  mesh.host('a').configure({ metrics: { address: '0.0.0.0', port: PORT } })
  mesh
    .host('b')
    .configure({ metrics: { address: mesh.host('b').namespace.ip, port: PORT, istioNames: true } })
  mesh.host('c').configure({
    metrics: {
      port: PORT,
      otlp: { endpoint: 'http://127.0.0.1:4318', protocol: 'http/json', interval: '1s' },
    },
  })
  const web = await mesh
    .host('a')
    .service('web', { listens: 8_080, upstreams: { db: 7_001 } })
    .start()
  // Two services: two registrations, and one target.
  await mesh.host('a').service('admin', { listens: 8_081 }).start()
  await mesh.host('b').service('db', { listens: 5_432 }).start()
  await mesh.host('c').service('cache', { listens: 6_379 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()

  const monitor = mesh.network.host(CONSUL_HOST)
  const folder = join(mesh.folder, 'prometheus')
  mkdirSync(folder)
  const configPath = join(folder, 'prometheus.yml')
  const rules = ['recording-rules', 'alerts'].map((name) =>
    join(root, `monitoring/prometheus/${name}.yaml`),
  )
  writeFileSync(
    configPath,
    `global: {scrape_interval: 1s, evaluation_interval: 1s}\nrule_files: ${JSON.stringify(rules)}\n${documentedConfiguration()}`,
  )
  await using _prometheus = await OwnedProcess.start(
    monitor.inside([
      prometheus,
      `--config.file=${configPath}`,
      `--storage.tsdb.path=${folder}/data`,
      '--web.listen-address=127.0.0.1:9090',
    ]),
    { name: 'prometheus' },
  )
  const ask = async <Answer>(path: string): Promise<Answer> =>
    JSON.parse(await monitor.run('curl', '-sS', `http://127.0.0.1:9090${path}`))
  const query = async (expression: string): Promise<QueryAnswer['data']['result']> =>
    (await ask<QueryAnswer>(`/api/v1/query?query=${encodeURIComponent(expression)}`)).data.result

  await t.test('each host that can be reached is one target under its own name', async () => {
    await eventually(
      async () => {
        const targets = (await query('up')).map(({ metric, value }) =>
          [metric['job'], metric['datacenter'], metric['instance'], value[1]].join(' '),
        )
        assert.deepEqual(new Set(targets), new Set(['hostmesh dc1 a 1', 'hostmesh dc1 b 1']))
        assert.equal(targets.length, 2)
      },
      { withinMs: 30_000 },
    )
  })

  await t.test('it has what was counted, from both sides', async () => {
    for (let i = 0; i < 5; i += 1) await web.callPort(7_001)
    await eventually(async () => {
      const opened = await query(
        'hostmesh_tcp_connections_opened_total{source_service="web",destination_service="db"}',
      )
      assert.deepEqual(
        new Set(
          opened.map(({ metric, value }) =>
            [metric['instance'], metric['reporter'], value[1]].join(' '),
          ),
        ),
        new Set(['a source 5', 'b destination 5']),
      )
    })
  })

  await t.test('every rule can be evaluated', async () => {
    await eventually(async () => {
      const { data } = await ask<RulesAnswer>('/api/v1/rules')
      const all = data.groups.flatMap((group) => group.rules)
      assert.ok(all.length > 10)
      for (const { name, health, lastError } of all)
        assert.equal(health, 'ok', `${name} ${lastError}`)
    })
    await eventually(async () => {
      const rates = await query('pair:hostmesh_tcp_connections_opened:rate5m')
      assert.ok(rates.some(({ metric }) => metric['destination_service'] === 'db'))
    })
  })

  await t.test('a host that is not scraped sends its metrics to a collector', async () => {
    await using collector = await OwnedProcess.start(
      mesh.host('c').namespace.inside([process.execPath, '-e', COLLECTOR]),
      { name: 'collector' },
    )
    await eventually(() => {
      assert.match(collector.output, /"key":"host.name","value":\{"stringValue":"c"\}/)
      assert.match(collector.output, /"name":"hostmesh_ready"/)
    })
  })

  await t.test('promtool finds nothing wrong with a scrape', async () => {
    const text = await monitor.run(
      'curl',
      '-sS',
      `http://${mesh.host('b').namespace.ip}:${PORT}/metrics`,
    )
    assert.match(text, /^istio_tcp_sent_bytes_total\{/m)
    // It reports by its exit code and on standard error.
    execFileSync('promtool', ['check', 'metrics'], { input: text, encoding: 'utf8' })
  })
})
