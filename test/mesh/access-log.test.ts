/**
 * The access log of two hosts: an allowed, a denied and a failing call have exactly one line each on both, which name
 * each other; and in the journal they can be told from the daemon's own log.
 */
import assert from 'node:assert/strict'
import { copyFile, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'

type Line = Readonly<Record<string, unknown>>

function pathOf(host: Host): string {
  return join(host.daemon.folder, 'access.log')
}

/** Ends the process that a reload has started. */
async function endSuccessor({ daemon }: Host): Promise<void> {
  const { pid } = await daemon.status()
  process.kill(pid, 'SIGTERM')
  await eventually(() => assert.throws(() => process.kill(pid, 0)), { withinMs: 10_000 })
}

async function linesOf(host: Host): Promise<Line[]> {
  const text = await readFile(pathOf(host), 'utf8').catch(() => '')
  return text
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as Line)
}

test('an allowed, a denied and a failing call in the logs of both hosts', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  await using undo = new AsyncDisposableStack()
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  for (const host of [a, b]) host.configure({ accessLog: { mode: 'on', to: pathOf(host) } })
  const web = await a.service('web').start()
  await b.service('db', { listens: 5432 }).start()
  await b.service('secret', { listens: 5433 }).start()
  await b.service('down', { listens: 5434 }).join()
  // Only the called host denies, so that the denial is in both logs.
  const strict = join(mesh.folder, 'catalog-of-b.yaml')
  await mesh.allow('web', 'db')
  await mesh.allow('web', 'down')
  await copyFile(mesh.catalog.path, strict)
  b.configure({ catalog: { kind: 'file', path: strict } })
  await mesh.allow('web', 'secret')
  await mesh.up()

  await web.call('db')
  await assert.rejects(web.call('secret'), { code: 'ECONNRESET' })
  await assert.rejects(web.call('down'), { code: 'ECONNRESET' })
  const [ofA, ofB] = await eventually(async () => {
    const both = [await linesOf(a), await linesOf(b)] as const
    assert.deepEqual(
      both.map(({ length }) => length),
      [3, 3],
    )
    return both
  })
  await a.daemon.hasNoConnections()

  const pair = (destination: string): readonly [Line, Line] => {
    const found = [ofA, ofB].map((lines) =>
      lines.filter((line) => line['destination_service'] === destination),
    )
    assert.deepEqual(
      found.map(({ length }) => length),
      [1, 1],
      destination,
    )
    const [[outbound], [inbound]] = found as [[Line], [Line]]
    assert.equal(outbound['direction'], 'outbound')
    assert.equal(inbound['direction'], 'inbound')
    assert.match(String(outbound['trace_id']), /^[0-9a-f]{32}$/)
    for (const name of [
      'trace_id',
      'source_service',
      'response_flags',
      'transport',
      'downstream_remote_address',
      'downstream_local_address',
    ])
      assert.equal(inbound[name], outbound[name], `${destination}: ${name}`)
    assert.equal(outbound['source_service'], 'web')
    assert.match(String(outbound['peer_spiffe_id']), new RegExp(`/svc/${destination}$`))
    assert.match(String(inbound['peer_spiffe_id']), /\/svc\/web$/)
    assert.match(String(inbound['requested_server_name']), new RegExp(`^${destination}\\.`))
    return [outbound, inbound]
  }

  await t.test('allowed', () => {
    const [outbound, inbound] = pair('db')
    for (const line of [outbound, inbound]) {
      assert.equal(line['response_flags'], '-')
      assert.equal(line['response_code_details'], null)
      assert.ok(Number(line['bytes_received']) > 0)
      assert.ok(Number(line['bytes_sent']) > 0)
      for (const name of ['connect_duration', 'first_byte_duration', 'duration'])
        assert.equal(typeof line[name], 'number', name)
    }
    for (const name of ['bytes_received', 'bytes_sent']) assert.equal(inbound[name], outbound[name])
    assert.equal(outbound['instance'], 'b/db')
    assert.equal(outbound['upstream_host'], `${b.namespace.ip}:15443`)
    assert.match(String(inbound['upstream_host']), /:5432$/)
  })

  await t.test('denied', () => {
    const [outbound, inbound] = pair('secret')
    assert.equal(inbound['response_flags'], 'DENY')
    assert.equal(inbound['response_code_details'], 'HM_POLICY_DENIED')
    assert.equal(outbound['response_code_details'], 'HM_TUNNEL_STREAM_RESET:denied')
  })

  await t.test('failing', () => {
    const [outbound, inbound] = pair('down')
    assert.equal(inbound['response_flags'], 'UF')
    assert.equal(inbound['response_code_details'], 'HM_DELIVER_UNREACHABLE')
    assert.equal(outbound['response_code_details'], 'HM_TUNNEL_STREAM_RESET:unreachable')
  })

  await t.test(
    'a file that was moved away is written anew, also by the process of a reload',
    async () => {
      await rename(pathOf(a), `${pathOf(a)}.moved`)
      await web.call('db')
      await eventually(async () => assert.equal((await linesOf(a)).length, 1))
      const { code, stdout, stderr } = await a.daemon.cli('reload')
      assert.equal(code, 0, stdout + stderr)
      undo.defer(() => endSuccessor(a))
      await web.call('db')
      await eventually(async () => assert.equal((await linesOf(a)).length, 2))
    },
  )
})

test('in the journal, marked among the lines of the daemon', async () => {
  await using mesh = await startMesh({
    hosts: ['a'],
    catalog: 'file',
    config: {
      accessLog: { mode: 'on', format: 'logfmt' },
      log: { level: 'info', format: 'logfmt' },
    },
  })
  const a = mesh.host('a')
  const web = await a.service('web').start()
  await a.service('db', { listens: 5432 }).start()
  await mesh.allow('web', 'db')
  await mesh.up()
  await web.call('db')
  const lines = await eventually(() => {
    const found = a.daemon.log.split('\n').filter((line) => line.startsWith('log=access '))
    assert.equal(found.length, 1)
    return found
  })
  assert.match(
    lines[0] ?? '',
    / source_service=web destination_service=db response_flags=- .* transport=local connection_id=0-1 trace_id=[0-9a-f]{32}$/,
  )
  const others = a.daemon.log.split('\n').filter((line) => line !== '' && line !== lines[0])
  for (const line of others)
    assert.match(line, /^time=\S+ level=\w+ (?:subsystem=\S+ |subsystem=".*" )?msg="/)
})
