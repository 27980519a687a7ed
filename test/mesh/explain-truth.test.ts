/**
 * `hostmesh explain` is right about what would happen where the catalog alone cannot tell: the destination has
 * other rules, its application is down, its port is blocked, or the host itself is not well.
 */
import assert from 'node:assert/strict'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { RefusedDocument, StatusDocument } from '../../src/model/admin.ts'
import type { Explanation } from '../../src/model/explanation.ts'
import type { ProbeFacts } from '../../src/model/facts.ts'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'

async function explained(
  host: Host,
  ...words: string[]
): Promise<Explanation & { readonly code: number | null }> {
  const run = await host.daemon.cli('explain', ...words, '-o', 'json')
  return { ...(JSON.parse(run.stdout) as Explanation), code: run.code }
}

function station(explanation: Explanation, name: string): Explanation['stations'][number] {
  const found = explanation.stations.find((each) => each.name === name)
  assert.ok(found, `no station ${name} in ${JSON.stringify(explanation.stations)}`)
  return found
}

test('what the destination would do', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = await a.service('web', { upstreams: { db: 9001 } }).start()
  const db = await b.service('db', { listens: 5432 }).start()
  const strict = join(mesh.folder, 'catalog-of-b.yaml')
  await copyFile(mesh.catalog.path, strict)
  b.configure({ catalog: { kind: 'file', path: strict } })
  await mesh.allow('web', 'db')
  await mesh.up()

  await t.test(
    'rules that only the destination has: a probe says denied, nothing is counted',
    async () => {
      const guess = await explained(a, '--from', 'web', '--to', 'db')
      assert.equal(guess.verdict, 'allowed')
      assert.match(guess.summary, /--probe asks/)
      const said = await explained(a, '--from', 'web', '--to', 'db', '--probe')
      assert.equal(said.verdict, 'denied')
      assert.equal(said.code, 1)
      assert.match(said.summary, /b\/db would refuse the connection, denied by its intentions/)
      assert.equal(await b.daemon.metric('hostmesh_tcp_connections_opened_total'), 0)
      assert.equal(await a.daemon.metric('hostmesh_tcp_connections_opened_total'), 0)
    },
  )

  await t.test('after a call it is known without a probe, and the record says it too', async () => {
    await assert.rejects(web.call('db'), { code: 'ECONNRESET' })
    const said = await explained(a, '--from', 'web', '--to', 'db')
    assert.equal(said.verdict, 'denied')
    assert.equal(said.code, 1)
    assert.match(station(said, 'answer').summary, /last connection to b\/db ended with DENY/)
    const { refused } = JSON.parse(
      (await a.daemon.cli('connections', '--refused', '-o', 'json')).stdout,
    ) as RefusedDocument
    const record = await explained(a, '--connection', refused[0]?.id ?? '')
    assert.equal(record.verdict, 'denied')
    assert.equal(record.code, 1)
    assert.equal(station(record, 'policy').mark, 'bad')
    assert.match(station(record, 'policy').details[0] ?? '', /As it looks now: Allowed/)
  })

  await t.test('when its rules have changed, a probe and a call agree again', async () => {
    await copyFile(mesh.catalog.path, strict)
    await eventually(async () => {
      const said = await explained(a, '--from', 'web', '--to', 'db', '--probe')
      assert.equal(said.verdict, 'allowed', said.summary)
      assert.equal(said.code, 0)
      assert.match(said.summary, /its host says so now/)
    })
    await web.call('db')
    assert.match((await explained(a, '--from', 'web', '--to', 'db')).summary, /it did lately/)
  })

  await t.test('ping says what the instance would do, and where the time goes', async () => {
    const run = await a.daemon.cli('ping', 'db', '--from', 'web', '-o', 'json')
    assert.equal(run.code, 0, run.stderr)
    const { replies } = JSON.parse(run.stdout) as { readonly replies: readonly ProbeFacts[] }
    const [reply] = replies
    assert.equal(reply?.verdict, 'delivered')
    assert.equal(reply.tunnel, 'open')
    assert.equal(reply.dialMs, null)
    assert.ok((reply.roundTripMs ?? 0) > 0)
    assert.ok((reply.answerMs ?? 0) > 0)
    assert.ok(reply.tookMs >= (reply.answerMs ?? 0))
  })

  await t.test('an application that is down: known by a probe, and at its own host', async () => {
    await db.workload.ask({ op: 'unlisten' })
    const said = await explained(a, '--from', 'web', '--to', 'db', '--probe')
    assert.equal(said.verdict, 'unreachable')
    assert.equal(said.code, 1)
    assert.match(said.summary, /Nobody listens at 127\.0\.0\.1:5432/)
    const there = await explained(b, '--from', 'web', '--to', 'db')
    assert.equal(there.verdict, 'unreachable')
    assert.equal(there.code, 1)
    await assert.rejects(web.call('db'))
    assert.equal((await explained(a, '--from', 'web', '--to', 'db')).code, 1)
    await db.workload.listen('127.0.0.1', 5432, 'echo')
    await eventually(() => web.call('db'))
    const again = await explained(a, '--from', 'web', '--to', 'db', '--probe')
    assert.equal(again.code, 0, again.summary)
  })

  await t.test('a probe does not touch the application', async () => {
    await db.workload.ask({ op: 'unlisten' })
    await db.workload.listen('127.0.0.1', 5432, 'manual')
    const said = await explained(a, '--from', 'web', '--to', 'db', '--probe')
    assert.equal(said.code, 0, said.summary)
    const [near, far] = await web.connectTo(db)
    // Had the probe connected, that connection would be the first to be accepted.
    await near.write('x')
    assert.equal(await far.read(1), 'x')
    await near.end()
    await far.end()
  })

  await t.test('a blocked port: not allowed, and in bounded time', async () => {
    await b.namespace.run('iptables', '-I', 'INPUT', '-p', 'tcp', '--dport', '15443', '-j', 'DROP')
    try {
      const startMs = performance.now()
      const said = await explained(a, '--from', 'web', '--to', 'db', '--probe')
      assert.equal(said.verdict, 'unreachable', said.summary)
      assert.equal(said.code, 1)
      assert.ok(performance.now() - startMs < 60_000)
      await assert.rejects(web.call('db'))
      assert.equal((await explained(a, '--from', 'web', '--to', 'db')).code, 1)
    } finally {
      await b.namespace.run(
        'iptables',
        '-D',
        'INPUT',
        '-p',
        'tcp',
        '--dport',
        '15443',
        '-j',
        'DROP',
      )
    }
    await db.workload.ask({ op: 'unlisten' })
    await db.workload.listen('127.0.0.1', 5432, 'echo')
    await eventually(() => web.call('db'), { withinMs: 60_000 })
    assert.equal((await explained(a, '--from', 'web', '--to', 'db')).code, 0)
  })

  await t.test('a probe of somebody else, of a connection, or from a file is refused', async () => {
    for (const words of [
      ['--from', 'nosuch', '--to', 'db', '--probe'],
      ['--connection', '0-1', '--probe'],
      ['--from', 'web', '--to', 'db', '--snapshot', '/nonexistent', '--probe'],
    ]) {
      const run = await a.daemon.cli('explain', ...words)
      assert.equal(run.code, 2, run.stderr)
      assert.match(run.stderr, /Cannot probe/)
    }
  })
})

test('an identity that is not captured is said alike by JSON, exit code, metrics and log', async () => {
  await using mesh = await startMesh({ hosts: ['a'], catalog: 'file' })
  const a = mesh.host('a')
  const web = a.service('web', { identity: 'cgroup' })
  await mesh.prepare(a)
  await a.daemon.launch()
  const status = async (): Promise<StatusDocument> => a.daemon.status()
  const missing = await eventually(async () => {
    const said = await status()
    assert.equal(said.serving, true)
    return said
  })
  const agreed = async (ready: boolean, codes: readonly string[]): Promise<void> => {
    const { problems, ready: isReady } = await status()
    assert.deepEqual(
      problems.map(({ code }) => code),
      codes,
    )
    assert.equal(isReady, ready)
    assert.equal(await a.daemon.metric('hostmesh_ready'), Number(ready))
    assert.equal(await a.daemon.metric('hostmesh_problems'), codes.length)
    assert.equal((await a.daemon.cli('status')).code, codes.length === 0 ? 0 : 1)
  }
  assert.match(missing.problems[0]?.message ?? '', /no cgroup/)
  assert.notEqual(missing.problems[0]?.hint, '')
  await agreed(false, ['HM_CAPTURE_WORKLOAD_MISSING'])
  await web.start()
  await eventually(() => agreed(true, []))
  const said = (message: RegExp): number =>
    a.daemon.log
      .split('\n')
      .filter((line) => line.includes('HM_CAPTURE_WORKLOAD_MISSING') && message.test(line)).length
  await eventually(() => assert.equal(said(/A problem is over/), 1))
  assert.equal(said(/"hint"/), 1)
})
