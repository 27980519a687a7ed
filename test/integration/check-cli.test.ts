/**
 * `hostmesh check`: findings of a running daemon, and of a machine before one runs, on real ports and sockets.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, writeFile } from 'node:fs/promises'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { runningChecks } from '../../src/cli/check.ts'
import type { Check } from '../../src/daemon/preflight/check.ts'
import { checkClock, checkNode } from '../../src/daemon/preflight/host-checks.ts'
import { preflight } from '../../src/daemon/preflight/preflight.ts'
import { MeshError } from '../../src/lib/errors.ts'
import {
  certs,
  fromNow,
  hostmesh,
  scriptedView,
  startScripted,
  temporaryDirectory,
  wellStatus,
} from './admin-fixtures.ts'
import { startFakeAgent } from './consul-fake-agent.ts'

const [fresh] = certs.leaves
assert.ok(fresh !== undefined)
const freshCerts = { ...certs, leaves: [fresh] }

function results(checks: readonly Check[]): string[] {
  return checks.map(({ check, result }) => `${result} ${check}`)
}

const noTools = (): Promise<never> =>
  Promise.reject(new MeshError('HM_CAPTURE_TOOL_MISSING', 'there is no such tool'))

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

/** Checks a configuration with a catalog and an admin socket in `directory`. */
async function preflightOf(directory: string, text: string): Promise<Check[]> {
  const path = join(directory, 'hostmesh.yaml')
  await mkdir(join(directory, 'state'), { recursive: true })
  const state = `state: {directory: ${join(directory, 'state')}}\n`
  await writeFile(path, `${text}${state}`, { mode: 0o600 })
  return preflight(path, { run: noTools, isDaemonAt: () => Promise.resolve(false) })
}

test('a running host: ok lines and exit code 0, or fail lines with the next step and exit code 1', async () => {
  await using well = await startScripted(scriptedView({ certs: () => Promise.resolve(freshCerts) }))
  const good = await hostmesh(['check', '--addr', `unix://${well.socketPath}`])
  assert.equal(good.code, 0)
  assert.match(good.stdout, /^ok +status +host-a is well/m)
  await using ill = await startScripted(
    scriptedView({
      status: () =>
        Promise.resolve({ ...wellStatus, capture: { mode: 'on', inSync: false, problems: [] } }),
    }),
  )
  const bad = await hostmesh(['check', '--addr', `unix://${ill.socketPath}`])
  assert.equal(bad.code, 1)
  assert.match(bad.stdout, /^fail +capture .*Next: hostmesh capture show/m)
  assert.match(bad.stdout, /^fail +certificates +The certificate of old has expired/m)
})

test('without a daemon the check of a running host is exit code 3', async () => {
  const { code } = await hostmesh(['check', '--addr', 'unix:///nonexistent/admin.sock'])
  assert.equal(code, 3)
})

test('a problem that blocks fails, another one warns; late certificates and reports warn', () => {
  const problem = { code: 'HM_X_Y', message: 'It is so', hint: 'Do this', since: fromNow(-1) }
  const late = { ...fresh, notBefore: fromNow(-90_000), notAfter: fromNow(10_000) }
  const checks = runningChecks(
    {
      ...wellStatus,
      problems: [
        { ...problem, blocks: true },
        { ...problem, blocks: false },
      ],
      capture: { mode: 'off', inSync: null, problems: [] },
      reports: [
        { aggregator: 'a', waiting: 0, lastSuccessAt: fromNow(-1_000) },
        { aggregator: 'b', waiting: 40, lastSuccessAt: fromNow(-400_000) },
        { aggregator: 'c', waiting: 1, lastSuccessAt: null },
      ],
    },
    { leaves: [late], roots: [] },
    Date.now(),
  )
  assert.deepEqual(results(checks), [
    'fail status',
    'warn status',
    'warn certificates',
    'ok capture',
    'ok reports',
    'warn reports',
    'warn reports',
  ])
})

test('an old Node.js, an impossible clock and one that is not synchronized are found', async () => {
  assert.equal(checkNode('v24.14.9').result, 'fail')
  assert.equal(checkNode('v24.15.0').result, 'ok')
  assert.equal((await checkClock(0, noTools)).result, 'fail')
  const now = Date.now()
  assert.equal((await checkClock(now, noTools)).result, 'ok')
  const unsynchronized = () => Promise.resolve({ status: 0, stdout: 'no\n', stderr: '' })
  assert.equal((await checkClock(now, unsynchronized)).result, 'warn')
})

test('an invalid configuration is one fail for each problem', async () => {
  await using directory = await temporaryDirectory()
  const checks = await preflightOf(directory.path, 'catalog: {kind: none}\nworkers: 0\n')
  const failed = checks.filter(({ result }) => result === 'fail')
  assert.ok(failed.length >= 2)
  assert.ok(failed.every(({ check }) => check === 'configuration'))
})

test('a port in use fails with its key and its holder, and free ones are still free afterwards', async () => {
  await using directory = await temporaryDirectory()
  await writeFile(join(directory.path, 'catalog.yaml'), 'services: {}\n')
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const text = (tunnelPort: number): string =>
    `catalog: {kind: file, path: catalog.yaml}\ncertificates: {kind: files, directory: certs}\nservices: []\ncapture: {mode: off}\nmetrics: {port: ${port}}\ntunnel: {port: ${tunnelPort}, address: 127.0.0.1}\n`
  try {
    const taken = await preflightOf(directory.path, text(await freePort()))
    const ports = taken.filter(({ check }) => check === 'ports')
    assert.deepEqual(results(ports), ['fail ports'])
    assert.match(ports[0]?.finding ?? '', new RegExp(`${port} \\(metrics.port\\).*${process.pid}`))
  } finally {
    server.close()
    await once(server, 'close')
  }
  const free = await preflightOf(directory.path, text(await freePort()))
  assert.ok(results(free).includes('ok ports'))
  assert.ok(results(free).includes('fail ca'), 'there are no certificates')
})

test('Consul: the rights that the token lacks are named, and certificates are asked for', async () => {
  await using directory = await temporaryDirectory()
  await using agent = await startFakeAgent()
  const tunnel = await freePort()
  const text = `catalog: {kind: consul, address: "${agent.address}"}\ncertificates: {kind: consul}\nservices: [{name: web, port: 8080}]\ncapture: {mode: off}\ntunnel: {port: ${tunnel}, address: 127.0.0.1}\n`
  agent.always('/v1/agent/self', () => ({ body: { Config: { Version: '1.20.1' } } }))
  agent.always('/v1/catalog/service/consul', () => ({ body: [] }))
  agent.always('/v1/agent/connect/ca/leaf/web', () => ({ status: 403, body: 'Permission denied' }))
  const poor = await preflightOf(directory.path, text)
  const byName = new Map(poor.map((check) => [check.check, check]))
  assert.equal(byName.get('consul')?.result, 'ok')
  assert.match(byName.get('token')?.next ?? '', /node_prefix "" \{ policy = "read" \}/)
  assert.equal(byName.get('ca')?.result, 'fail')
  assert.match(byName.get('ca')?.finding ?? '', /service "web" \{ policy = "write" \}/)

  agent.always('/v1/catalog/service/consul', () => ({ body: [{ Node: 'a' }] }))
  agent.always('/v1/agent/connect/ca/leaf/web', () => ({
    body: { ValidAfter: fromNow(-60_000), ValidBefore: fromNow(3_600_000) },
  }))
  assert.ok(results(await preflightOf(directory.path, text)).every((line) => !/fail/.test(line)))

  agent.always('/v1/agent/connect/ca/leaf/web', () => ({
    body: { ValidAfter: fromNow(3_600_000), ValidBefore: fromNow(7_200_000) },
  }))
  assert.ok(results(await preflightOf(directory.path, text)).includes('fail clock'))
})
