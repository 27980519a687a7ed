/**
 * Nobody is ever taken for somebody else: three services and an intruder open and drop connections for 20 s on
 * the same few local ports, the intruder with forged headers in front. Every connection that arrives carries
 * the identity of the process that opened it, and the intruder is always denied.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { encodePreface } from '../../src/dataplane/tunnel/preface.ts'
import { eventually, patient, within } from '../harness/eventually.ts'
import { issueLeaves, TRUST_DOMAIN, TUNNEL_PORT } from '../harness/file-catalog.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { OwnedProcess, runCommand } from '../harness/owned-process.ts'
import type { Service } from '../harness/service.ts'
import { peerFiles } from '../harness/tls-peer.ts'
import { enterCgroup } from '../harness/workload.ts'

const CHURN_MS = 20_000

/** All local ports there are, and those that callers ask for by number. */
const PORT_RANGE = '40000 40511'
const SHARED_PORTS = [40_000, 64]

/** Connections of each caller to each service that allows it, on the slowest machine. */
const LEAST_CALLS = 50

/** One connection as the ledger saw it. */
interface Entry {
  /** From the certificate: `URI:spiffe://…`. */
  readonly proven: string
  readonly said: string
}

/** What a churning process counted. */
interface Tally {
  readonly opened: number
  readonly answered: Readonly<Record<string, number>>
  readonly failed: Readonly<Record<string, number>>
}

test('callers that churn through the same ports are never taken for each other', async (t) => {
  await using mesh = await startMesh({
    hosts: ['a', 'b', 'c'],
    catalog: 'file',
    daemonless: ['c'],
  })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const callers = [
    a.service('web'),
    a.service('api'),
    a.service('batch', { identity: 'cgroup' }),
    a.service('evil'),
  ]
  await b.service('db', { listens: 5432 }).start()
  await a.service('cache', { listens: 6379 }).start()
  const entries = await keepLedger(mesh)
  for (const { name } of callers)
    for (const destination of ['db', 'cache'])
      if (name !== 'evil') await mesh.allow(name, destination)
  await a.namespace.run('sysctl', '-qw', `net.ipv4.ip_local_port_range=${PORT_RANGE}`)
  // A host with an identity that does not exist is not well.
  for (const { cgroup } of callers) await mesh.makeCgroup(cgroup)
  await mesh.up()

  const tallies = new Map(
    await Promise.all(
      callers.map(async (service) => [service.name, await churn(mesh, service)] as const),
    ),
  )

  const told = JSON.stringify(Object.fromEntries(tallies))
  t.diagnostic(`${entries.length} entries in the ledger; ${told}`)
  const countByCaller = new Map<string, number>()
  for (const { proven, said } of entries) {
    const caller = / ([a-z]+) \d+\.\n$/.exec(said)?.[1] ?? ''
    assert.equal(proven, `URI:spiffe://${TRUST_DOMAIN}/ns/default/dc/dc1/svc/${caller}`, said)
    countByCaller.set(caller, (countByCaller.get(caller) ?? 0) + 1)
  }
  for (const { name } of callers) {
    const tally = tallies.get(name)
    assert.ok((countByCaller.get(name) ?? 0) >= LEAST_CALLS, `${name} at the ledger: ${told}`)
    for (const destination of ['db', 'cache'])
      if (name === 'evil') assert.equal(tally?.answered[destination], undefined, told)
      else assert.ok((tally?.answered[destination] ?? 0) >= LEAST_CALLS, `${name}: ${told}`)
  }
  assert.ok(
    entries.some(({ proven, said }) => proven.endsWith('/evil') && said.startsWith('PROXY ')),
    'the forged headers arrived, as the bytes that they are',
  )
  await eventually(async () => {
    const closed = (source: string): Promise<number> =>
      b.daemon.metric('hostmesh_tcp_connections_closed_total', {
        source_service: source,
        destination_service: 'db',
        response_flags: 'DENY',
      })
    assert.ok((await closed('evil')) >= LEAST_CALLS)
    for (const source of ['web', 'api', 'batch']) assert.equal(await closed(source), 0, source)
  })
})

/** Starts the ledger on the host without a daemon, and returns where its entries appear. */
async function keepLedger(mesh: Mesh): Promise<readonly Entry[]> {
  const { namespace } = mesh.host('c')
  const folder = join(mesh.folder, 'ledger')
  const { catalog } = mesh
  if (!('caFolder' in catalog && typeof catalog.caFolder === 'string'))
    throw new Error('The ledger needs the CA of a file catalog')
  await issueLeaves(catalog.caFolder, ['ledger'], folder)
  const { certificate, key } = await peerFiles(folder)
  const script = join(import.meta.dirname, '../harness/services/ledger.ts')
  const ledger = await OwnedProcess.start(
    namespace.inside([process.execPath, script, String(TUNNEL_PORT), certificate, key]),
    { name: 'ledger', ipc: true },
  )
  mesh.own(ledger)
  const entries: Entry[] = []
  await within(
    10_000,
    'The start of the ledger',
    new Promise<void>((resolve) => {
      ledger.child.on('message', (message: { event: string } & Entry) => {
        if (message.event === 'listening') resolve()
        else entries.push(message)
      })
    }),
  )
  const instance = { service: 'ledger', id: 'ledger', host: 'c', ip: namespace.ip, port: 9000 }
  await catalog.join(instance)
  mesh.joined(instance)
  return entries
}

/** Has a process of the service churn, and returns what it counted. */
async function churn(mesh: Mesh, service: Service): Promise<Tally> {
  const { host, name, uid } = service
  const targets = await Promise.all(
    ['db', 'cache', 'ledger'].map(async (target) => ({
      name: target,
      ...(await mesh.virtualAddress(target, host)),
    })),
  )
  const task = {
    uid,
    name,
    targets,
    forMs: CHURN_MS,
    localPorts: SHARED_PORTS,
    forges: name === 'evil' ? forgeries() : [],
  }
  const script = join(import.meta.dirname, '../harness/services/churn.ts')
  const cgroup = await mesh.makeCgroup(service.cgroup)
  const enter = cgroup === undefined ? [] : enterCgroup(cgroup)
  const result = await runCommand(
    host.namespace.inside([...enter, process.execPath, script, JSON.stringify(task)]),
    { limitMs: patient(CHURN_MS + 60_000) },
  )
  assert.equal(result.code, 0, result.stderr)
  return JSON.parse(result.stdout) as Tally
}

/** The means by which an attacker may try to be accepted as another service. */
function forgeries(): readonly string[] {
  const address = { ip: '10.88.0.1', port: 40_001 }
  const preface = { source: address, destination: address, instance: 'db', traceparent: undefined }
  return [
    Buffer.from('PROXY TCP4 10.88.0.1 10.88.0.2 40001 5432\r\n'),
    encodePreface(preface),
    Buffer.from('GET / HTTP/1.1\r\nx-forwarded-client-cert: URI=spiffe://x/svc/web\r\n\r\n'),
    Buffer.from('000100000001000000000000', 'hex'),
  ].map((bytes) => bytes.toString('base64'))
}
