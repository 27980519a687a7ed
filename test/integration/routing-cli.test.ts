/**
 * `hostmesh intentions` and `hostmesh routes` against a real admin server: what is enforced, and where connections go.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { hostmesh, scriptedView, startScripted } from './admin-fixtures.ts'

/** The cells of each line: columns are two spaces or more apart. */
function cells(text: string): string[][] {
  return text
    .trimEnd()
    .split('\n')
    .map((line) => line.trim().split(/ {2,}/))
}

test('intentions are listed in order of evaluation, with the default last and what cannot be enforced', async () => {
  await using server = await startScripted(scriptedView())
  const at = { HOSTMESH_ADDR: `unix://${server.socketPath}` }
  const { code, stdout, stderr } = await hostmesh(['intentions'], at)
  assert.equal(code, 0)
  assert.deepEqual(cells(stdout), [
    ['DESTINATION', 'SOURCE', 'PRECEDENCE', 'ACTION', 'EFFECT', 'BECAUSE'],
    ['new', 'any other', '-', '-', 'deny', 'no intentions are loaded yet'],
    ['web', 'ingress', '9', 'allow', 'allow'],
    ['web', 'legacy', '9', 'allow', 'deny', 'has JWT requirements, which cannot be obeyed'],
    ['web', '*', '5', 'deny', 'deny', 'intention for all destinations'],
    ['web', 'any other', '-', '-', 'deny', 'default policy'],
  ])
  assert.equal(stderr, '1 intention for web cannot be enforced as written, and so denies\n')
})

test('intentions of one service are the document with it alone, and a mistyped one is exit code 5', async () => {
  await using server = await startScripted(scriptedView())
  const at = { HOSTMESH_ADDR: `unix://${server.socketPath}` }
  const { stdout } = await hostmesh(['intentions', 'web', '-o', 'json'], at)
  const document: { destinations: { destination: string }[] } = JSON.parse(stdout)
  assert.deepEqual(
    document.destinations.map(({ destination }) => destination),
    ['web'],
  )
  const missing = await hostmesh(['intentions', 'wbe'], at)
  assert.equal(missing.code, 5)
  assert.match(missing.stderr, /hint: Did you mean web\?/)
})

test('routes show weights, failover and the cluster that is used, and say that opaque bytes are not split', async () => {
  await using server = await startScripted(scriptedView())
  const at = { HOSTMESH_ADDR: `unix://${server.socketPath}` }
  const { code, stdout, stderr } = await hostmesh(['routes', 'db'], at)
  assert.equal(code, 0)
  assert.deepEqual(cells(stdout), [
    ['SERVICE', 'CLUSTER', 'SERVES AS', 'WEIGHT', 'USED', 'HEALTHY', 'FAILOVER'],
    ['db', 'db:v2', 'db in dc1', '90%', 'yes', '1/1', 'db in dc2'],
    ['db', 'db:v1', 'db in dc1', '10%', 'no', '0/1', '-'],
    [''],
    ['CLUSTER', 'PRIORITY', 'INSTANCE', 'NODE', 'ADDRESS', 'SERVES AS', 'HEALTH', 'EJECTED'],
    ['db:v2', '0', 'db-2', 'host-b', '10.0.0.7:15443', 'db in dc1', 'passing', '-'],
    ['db:v2', '1 (failover)', 'db-9', 'host-x', '10.0.0.7:15443', 'db in dc2', 'passing', '-'],
    ['db:v1', '0', 'db-1', 'host-c', '10.0.0.7:15443', 'db in dc1', 'critical', '-'],
  ])
  assert.match(stderr, /^Connections to db are not split: all go to db:v2/)
  assert.equal((await hostmesh(['routes', 'none'], at)).code, 5)
})
