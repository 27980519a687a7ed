/**
 * The aggregator of a fleet on two real machines, in order: rolled out by Ansible, run by systemd under the hardening of
 * its unit, reported to by both hosts, killed, and removed.
 */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import type { ConfigInput } from '../../src/config/schema.ts'
import type { FleetDocuments } from '../../src/model/fleet.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { AT_ONCE, Controller } from './controller.ts'
import { Machine } from './machine.ts'
import { makePackage } from './services.ts'
import {
  catalogOf,
  db,
  enableWebAndDb,
  issueCertificates,
  type ServiceConfig,
  statusOnceWell,
  web,
  webAndDbFiles,
  webReachesDb,
} from './web-and-db.ts'

const UNIT = 'hostmesh-aggregator.service'
const DIRECTORY = '/var/lib/hostmesh-aggregator'
const AGGREGATOR = 'hostmesh-aggregator'

const cleanUp = new AsyncDisposableStack()
let controller: Controller
let a: Machine
let b: Machine
let filesBefore: readonly string[]

before(async () => {
  const network = cleanUp.use(await Network.create(['a', 'b']))
  controller = cleanUp.use(await Controller.create(network.wire))
  const files = {
    '/root/.ssh/authorized_keys': controller.publicKey,
    ...(await webAndDbFiles()),
  }
  a = cleanUp.use(await Machine.create('host-a', network.host('a'), files))
  b = cleanUp.use(await Machine.create('host-b', network.host('b'), files))
  await Promise.all([a.boot(), b.boot()])
  await enableWebAndDb(a, b)
  await issueCertificates(
    controller,
    new Map([
      ['host-a', ['web', 'hostmesh']],
      ['host-b', ['db', 'hostmesh', AGGREGATOR]],
    ]),
  )
  await describeFleet(await makePackage(controller.folder))
  filesBefore = await b.files()
})

after(() => cleanUp.disposeAsync())

test('check mode on new machines succeeds and touches nothing', async () => {
  await controller.mustPlay('site', ...AT_ONCE, '--check')
  assert.deepEqual(await b.files(), filesBefore)
  assert.equal((await b.run('id', AGGREGATOR)).code, 1)
})

test('one run makes two hosts and an aggregator, and both hosts report to it', async () => {
  await controller.mustPlay('site', ...AT_ONCE)
  for (const machine of [a, b]) await statusOnceWell(machine)
  await webReachesDb(a)
  await bothReport()
})

test('root asks by its socket and anyone on its machine by its port, and from elsewhere nobody', async () => {
  const ask = ['hostmesh', 'fleet', 'hosts']
  assert.match(await b.must(...ask), /^host-a .*\n(.*\n)*host-b /m)
  const asNobody = ['setpriv', '--reuid=nobody', '--regid=nogroup', '--clear-groups', ...ask]
  assert.notEqual((await b.run(...asNobody)).code, 0)
  const port = ['--aggregator', 'http://127.0.0.1:15190']
  assert.match(await b.must(...asNobody, ...port), /^host-a .*\n(.*\n)*host-b /m)
  const fromA = await a.run(...ask, '--aggregator', `http://${b.ip}:15190`)
  assert.equal(fromA.code, 3, fromA.stderr)
})

test('a second run, and check mode, change nothing', async () => {
  const pid = await b.property('MainPID', UNIT)
  for (const options of [[], ['--check']]) {
    const run = await controller.mustPlay('site', ...AT_ONCE, ...options)
    for (const name of ['host-a', 'host-b']) assert.equal(run.hosts[name]?.changed, 0, run.output)
  }
  assert.equal(await b.property('MainPID', UNIT), pid)
})

test('it runs as its own user, watched, with no capability and its system calls filtered', async () => {
  const field = await b.mainProcess(UNIT)
  const uid = (await b.must('id', '-u', AGGREGATOR)).trim()
  assert.equal(field('Uid'), Array(4).fill(uid).join('\t'))
  for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'CapInh'])
    assert.equal(field(set), '0000000000000000', set)
  assert.equal(field('NoNewPrivs'), '1')
  assert.equal(field('Seccomp'), '2')
  assert.equal(await b.property('WatchdogUSec', UNIT), '30s')
  assert.equal(await b.property('UnitFileState', UNIT), 'enabled')
  assert.equal(await b.property('NRestarts', UNIT), '0')
  const modes = await b.must('stat', '--format=%a %U:%G', DIRECTORY, `${DIRECTORY}/fleet.db`)
  assert.equal(modes, `750 ${AGGREGATOR}:${AGGREGATOR}\n600 ${AGGREGATOR}:${AGGREGATOR}\n`)
})

test('kill -9 and a reboot of its machine are mended by systemd, and its past is kept', async () => {
  const oldest = await oldestFigures()
  assert.ok(oldest !== null)
  await b.must('systemctl', 'kill', '--kill-whom=main', '--signal=KILL', UNIT)
  await eventually(async () => assert.equal(await b.restarts(UNIT), 1))
  await bothReport()
  await b.reboot()
  await bothReport()
  assert.equal(await oldestFigures(), oldest)
})

test('the daemon goes without taking the aggregator along', async () => {
  await controller.mustPlay('uninstall', '--limit', 'host-b')
  assert.equal(await b.property('LoadState'), 'not-found')
  assert.equal(await b.property('ActiveState', UNIT), 'active')
  assert.equal(await b.must('ls', '/etc/hostmesh'), 'aggregator.yaml\n')
  assert.equal((await hosts()).length, 2)
})

test('removing it keeps its database; told to delete it, nothing of it is left', async () => {
  await controller.mustPlay('uninstall_aggregator')
  assert.equal(await b.property('LoadState', UNIT), 'not-found')
  assert.equal((await b.run('test', '-e', `${DIRECTORY}/fleet.db`)).code, 0)
  assert.equal((await b.run('test', '-e', '/etc/hostmesh/aggregator.yaml')).code, 1)
  await controller.mustPlay('uninstall')
  const remove = ['--extra-vars', 'hostmesh_aggregator_delete_data=true']
  await controller.mustPlay('uninstall_aggregator', ...remove)
  assert.deepEqual(await b.files(), filesBefore)
  for (const database of ['passwd', 'group'])
    assert.equal((await b.run('getent', database, AGGREGATOR)).code, 2)
  const again = await controller.play('uninstall_aggregator', ...remove)
  assert.deepEqual([again.code, again.hosts['host-b']?.changed], [0, 0], again.output)
})

/** Writes the inventory: web on host-a; db and the aggregator on host-b. */
async function describeFleet(tarball: string): Promise<void> {
  const config = (host: Machine, services: readonly ServiceConfig[]): ConfigInput => ({
    node: { name: host.name },
    catalog: { kind: 'file', path: 'catalog.yaml' },
    certificates: { kind: 'files', directory: 'certs' },
    services: [...services],
    capture: { mode: 'on' },
    timeouts: { drain: '2s' },
  })
  await controller.manage(
    new Map([
      [a, { hostmesh_agent_config: config(a, [web]) }],
      [b, { hostmesh_agent_config: config(b, [db]), hostmesh_aggregator: true }],
    ]),
    {
      hostmesh_agent_package: tarball,
      hostmesh_agent_certificates: `${controller.folder}/certificates/{{ inventory_hostname }}`,
      hostmesh_agent_wait: '20s',
      hostmesh_agent_catalog: withAggregator(catalogOf(b)),
      hostmesh_reports_to: [AGGREGATOR],
    },
  )
}

/** A catalog that has the aggregator on host-b, too, and lets hosts report to it. */
function withAggregator(catalog: object): object {
  const { services, intentions } = catalog as { services: object[]; intentions: object[] }
  const instance = { Node: b.name, Address: b.ip, ServicePort: 15_191 }
  return {
    services: [...services, { Name: AGGREGATOR, Instances: [instance] }],
    intentions: [
      ...intentions,
      { SourceName: 'hostmesh', DestinationName: AGGREGATOR, Action: 'allow' },
    ],
  }
}

/** What `hostmesh fleet hosts` says on the aggregator's machine. */
async function hosts(): Promise<FleetDocuments['hosts']['hosts']> {
  const said = await b.must('hostmesh', 'fleet', 'hosts', '-o', 'json')
  return (JSON.parse(said) as FleetDocuments['hosts']).hosts
}

/** Since when there are figures of 10 s. */
async function oldestFigures(): Promise<string | null> {
  const said = await b.run('hostmesh', 'fleet', 'status', '-o', 'json')
  return (JSON.parse(said.stdout) as FleetDocuments['overview']).store.oldest.seconds
}

async function bothReport(): Promise<void> {
  await eventually(
    async () =>
      assert.deepEqual((await hosts()).map(({ name, state }) => `${name} ${state}`).toSorted(), [
        'host-a ready',
        'host-b ready',
      ]),
    { withinMs: 60_000 },
  )
}
