/**
 * A mesh with a certificate authority of its own, on three real machines, in order: rolled out by Ansible, joined by
 * tokens that nobody sees, run by systemd under the hardening of its unit, killed, rebooted, lost, and removed.
 */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { after, before, test } from 'node:test'
import type { CaStatus } from '../../src/authority/status.ts'
import type { ConfigInput } from '../../src/config/schema.ts'
import type { CertsDocument } from '../../src/model/admin.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { AT_ONCE, Controller } from './controller.ts'
import { Machine } from './machine.ts'
import { makePackage } from './services.ts'
import {
  askWeb,
  catalogOf,
  db,
  enableWebAndDb,
  statusOnceWell,
  web,
  webAndDbFiles,
  webReachesDb,
} from './web-and-db.ts'

const TRUST_DOMAIN = 'mesh.example.com'

const CA_UNIT = 'hostmesh-ca.service'
const CA_DIRECTORY = '/var/lib/hostmesh-ca'
const JOIN_TOKEN = '/etc/hostmesh/join-token'
const HOST_CERTIFICATE = '/var/lib/hostmesh/certificates/host.pem'

const cleanUp = new AsyncDisposableStack()
let network: Network
let controller: Controller
let authority: Machine
let a: Machine
let b: Machine
let tarball: string
let filesBefore: readonly string[]

before(async () => {
  network = cleanUp.use(await Network.create(['ca', 'a', 'b']))
  controller = cleanUp.use(await Controller.create(network.wire))
  const files = {
    '/root/.ssh/authorized_keys': controller.publicKey,
    ...(await webAndDbFiles()),
  }
  authority = cleanUp.use(await Machine.create('authority', network.host('ca'), files))
  a = cleanUp.use(await Machine.create('host-a', network.host('a'), files))
  b = cleanUp.use(await Machine.create('host-b', network.host('b'), files))
  await Promise.all([authority, a, b].map((machine) => machine.boot()))
  await enableWebAndDb(a, b)
  tarball = await makePackage(controller.folder)
  await describeFleet({})
  filesBefore = await authority.files()
})

after(() => cleanUp.disposeAsync())

test('check mode on new machines succeeds, touches nothing and makes no token', async () => {
  await controller.mustPlay('site', ...AT_ONCE, '--check')
  assert.deepEqual(await authority.files(), filesBefore)
  for (const user of ['hostmesh', 'hostmesh-ca'])
    assert.equal((await authority.run('id', user)).code, 1, user)
})

test('one run makes the authority, and both hosts join it; their tokens are in no output and no journal', async () => {
  const run = await controller.mustPlay('site', '-vvv')
  const status = await caStatus()
  assert.equal(status.trustDomain, TRUST_DOMAIN)
  assert.deepEqual(status.hosts.map(({ name }) => name).toSorted(), ['host-a', 'host-b'])
  assert.deepEqual(status.openTokens, [])
  for (const machine of [a, b]) {
    const token = (await machine.must('cat', JOIN_TOKEN)).trim()
    assert.match(token, /^hm1\./)
    const { s: secret } = JSON.parse(Buffer.from(token.slice(4), 'base64url').toString())
    const modes = await machine.must('stat', '--format=%a %U:%G', JOIN_TOKEN, HOST_CERTIFICATE)
    assert.equal(modes, '640 root:hostmesh\n600 hostmesh:hostmesh\n')
    const journals = await Promise.all(
      [authority, a, b].map((one) => one.must('journalctl', '--no-pager', '--output=export')),
    )
    for (const text of [run.output, ...journals])
      for (const word of [token, secret]) assert.ok(!text.includes(word), 'a token is to be seen')
  }
})

test('services reach each other with certificates of that authority', async () => {
  await wellAgain()
  const root = new X509Certificate(await authority.must('cat', `${CA_DIRECTORY}/ca.pem`))
  for (const [machine, name] of [
    [a, 'web'],
    [b, 'db'],
  ] as const) {
    const { roots, leaves } = await certs(machine)
    assert.deepEqual(
      roots.map(({ fingerprint }) => fingerprint),
      [root.fingerprint256],
    )
    assert.deepEqual(
      leaves.map(({ spiffeId }) => spiffeId),
      [`spiffe://${TRUST_DOMAIN}/ns/default/dc/dc1/svc/${name}`],
    )
  }
  assert.match(await a.must('hostmesh', 'peers', '-o', 'json'), /svc\/db/)
})

test('a second run changes nothing, and makes no token for hosts that have joined', async () => {
  const pid = await authority.property('MainPID', CA_UNIT)
  const tokenBefore = await a.must('cat', JOIN_TOKEN)
  const run = await controller.mustPlay('site', ...AT_ONCE)
  for (const name of ['authority', 'host-a', 'host-b'])
    assert.equal(run.hosts[name]?.changed, 0, run.output)
  assert.deepEqual((await caStatus()).openTokens, [])
  assert.equal(await a.must('cat', JOIN_TOKEN), tokenBefore)
  assert.equal(await authority.property('MainPID', CA_UNIT), pid)
})

test('check mode on machines that are done finds nothing to change', async () => {
  const run = await controller.mustPlay('site', ...AT_ONCE, '--check')
  for (const name of ['authority', 'host-a', 'host-b'])
    assert.equal(run.hosts[name]?.changed, 0, run.output)
})

test('the authority runs as its own user, watched, with no capability and its system calls filtered', async () => {
  const field = await authority.mainProcess(CA_UNIT)
  const uid = (await authority.must('id', '-u', 'hostmesh-ca')).trim()
  assert.equal(field('Uid'), Array(4).fill(uid).join('\t'))
  for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'CapInh'])
    assert.equal(field(set), '0000000000000000', set)
  assert.equal(field('NoNewPrivs'), '1')
  assert.equal(field('Seccomp'), '2')
  const property = (name: string) => authority.property(name, CA_UNIT)
  assert.equal(await property('Type'), 'notify')
  assert.equal(await property('WatchdogUSec'), '30s')
  assert.equal(await property('StatusText'), `serving ${TRUST_DOMAIN}`)
  assert.equal(await property('UnitFileState'), 'enabled')
  assert.equal(await property('NRestarts'), '0')
})

test('systemd-analyze finds the unit of the authority no more exposed than that of the agent', async () => {
  assert.ok((await exposure(authority, CA_UNIT)) <= (await exposure(a, 'hostmesh.service')))
})

test('the keys of the authority are for its user alone', async () => {
  const names = ['ca.key', 'state.db', 'state.db-journal', 'admin.sock']
  const paths = [CA_DIRECTORY, ...names.map((name) => `${CA_DIRECTORY}/${name}`)]
  const modes = await authority.must('stat', '--format=%n %a %U:%G', ...paths)
  const lines = modes.trim().split('\n')
  assert.equal(lines.length, paths.length)
  assert.equal(lines[0], `${CA_DIRECTORY} 700 hostmesh-ca:hostmesh-ca`)
  for (const line of lines.slice(1)) assert.match(line, / 600 hostmesh-ca:hostmesh-ca$/)
})

test('a service that a host is given later gets its certificate by the next run, without a token', async () => {
  const serial = await hostSerial(b)
  await describeFleet({ more: [{ name: 'report', upstreams: [{ destination: 'db' }] }] })
  await controller.mustPlay('site', ...AT_ONCE)
  await eventually(async () => {
    const { leaves } = await certs(b)
    assert.deepEqual(leaves.map(({ service }) => service).toSorted(), ['db', 'report'])
  })
  assert.deepEqual((await caStatus()).openTokens, [])
  assert.equal(await hostSerial(b), serial)
})

test('a service that no host was given has no certificate to get', async () => {
  await describeFleet({ more: [{ name: 'intruder', upstreams: [{ destination: 'db' }] }] })
  const onlyHost = ['--limit', 'host-b', '--extra-vars', 'hostmesh_agent_wait=2s']
  const refused = await controller.play('site', ...onlyHost)
  assert.equal(refused.hosts['host-b']?.failed, 1, refused.output)
  assert.match(refused.output, /HM_CA_SERVICE_REFUSED|No new certificate for intruder/)
  await describeFleet({})
  await controller.mustPlay('site', ...AT_ONCE)
  await wellAgain()
})

test('a restart of the authority is noticed by nobody, and options of the next run restart it', async () => {
  await authority.must('systemctl', 'restart', CA_UNIT)
  const pid = await authority.property('MainPID', CA_UNIT)
  await renewsLeaf()
  await describeFleet({ options: ['--leaf-lifetime=12h'] })
  await controller.mustPlay('site', '--limit', 'authority')
  assert.notEqual(await authority.property('MainPID', CA_UNIT), pid)
  await renewsLeaf()
  const [leaf] = (await certs(a)).leaves
  assert.ok(leaf !== undefined)
  const livesMs = Date.parse(leaf.notAfter) - Date.parse(leaf.notBefore)
  assert.ok(livesMs < 13 * 3_600_000, JSON.stringify(leaf))
})

test('kill -9 and a hang of the authority are mended by systemd', async () => {
  await authority.must('systemctl', 'kill', '--kill-whom=main', '--signal=KILL', CA_UNIT)
  await eventually(async () => assert.equal(await authority.restarts(CA_UNIT), 1))
  await authority.hang(CA_UNIT)
  await renewsLeaf()
})

test('a machine of the authority that reboots, or loses its power, serves its hosts as before', async () => {
  const { hosts } = await caStatus()
  await authority.reboot()
  await renewsLeaf()
  await authority.cutPower()
  assert.equal(await askWeb(a), 'host-b heard ping\n')
  await authority.boot()
  await renewsLeaf()
  const names = (list: CaStatus['hosts']) => list.map(({ name }) => name)
  assert.deepEqual(names((await caStatus()).hosts), names(hosts))
})

test('a host that reboots while the authority is off comes back well by what it has kept', async () => {
  const serial = await hostSerial(a)
  await authority.must('systemctl', 'stop', CA_UNIT)
  await a.reboot()
  await webReachesDb(a)
  await authority.must('systemctl', 'start', CA_UNIT)
  await wellAgain()
  assert.equal(await hostSerial(a), serial)
})

test('a host that was revoked joins again only by a run that is told so', async () => {
  await authority.must('hostmesh', 'ca', 'revoke', '--directory', CA_DIRECTORY, '--host', 'host-a')
  await eventually(async () => assert.doesNotMatch(await askWeb(a), /heard/))
  const quick = ['--limit', 'host-a', '--extra-vars', 'hostmesh_agent_wait=2s']
  const refused = await controller.play('site', ...quick)
  assert.equal(refused.hosts['host-a']?.failed, 1, refused.output)
  assert.deepEqual((await caStatus()).openTokens, [])
  const told = ['--limit', 'host-a', '--extra-vars', 'hostmesh_ca_rejoin=true']
  await controller.mustPlay('site', ...told)
  await wellAgain()
})

test('an authority of another mesh is not taken over', async () => {
  await describeFleet({ trustDomain: 'other.example.com' })
  const run = await controller.play('site', ...AT_ONCE)
  assert.equal(run.hosts['authority']?.failed, 1, run.output)
  assert.match(run.output, /is that of another mesh than other\.example\.com/)
  assert.equal(run.hosts['host-a'], undefined, run.output)
  await describeFleet({})
})

test('an agent on the machine of the authority goes without taking it along', async () => {
  await describeFleet({ isAuthorityHost: true })
  const here = ['--limit', 'authority']
  await controller.mustPlay('site', ...here)
  assert.equal(await authority.property('ActiveState'), 'active')
  await controller.mustPlay('uninstall', ...here)
  assert.equal(await authority.property('LoadState'), 'not-found')
  assert.equal((await authority.run('id', 'hostmesh')).code, 1)
  assert.equal(await authority.must('ls', '/etc/hostmesh'), 'ca-catalog.yaml\nca.env\n')
  await renewsLeaf()
  await describeFleet({})
})

test('removing the authority keeps its keys, and a rollout takes it up again with them', async () => {
  const key = await authority.must('sha256sum', `${CA_DIRECTORY}/ca.key`)
  await controller.mustPlay('uninstall_ca')
  assert.equal(await authority.property('LoadState', CA_UNIT), 'not-found')
  assert.equal((await authority.run('test', '-e', '/usr/bin/hostmesh')).code, 1)
  await controller.mustPlay('site', ...AT_ONCE)
  assert.equal(await authority.must('sha256sum', `${CA_DIRECTORY}/ca.key`), key)
  await renewsLeaf()
})

test('told to delete the keys, it leaves no file, user or unit', async () => {
  await controller.mustPlay('uninstall_ca', '--extra-vars', 'hostmesh_ca_delete_keys=true')
  assert.deepEqual(await authority.files(), filesBefore)
  assert.equal((await authority.run('getent', 'passwd', 'hostmesh-ca')).code, 2)
  assert.equal((await authority.run('getent', 'group', 'hostmesh-ca')).code, 2)
  const again = await controller.play('uninstall_ca')
  assert.deepEqual([again.code, again.hosts['authority']?.changed], [0, 0], again.output)
})

/** Writes the inventory: web on host-a, db and perhaps more on host-b. */
async function describeFleet(options: {
  readonly more?: NonNullable<ConfigInput['services']>
  readonly options?: readonly string[]
  readonly trustDomain?: string
  readonly isAuthorityHost?: boolean
}): Promise<void> {
  const config = (host: Machine, services: ConfigInput['services']): ConfigInput => ({
    node: { name: host.name },
    catalog: { kind: 'file', path: 'catalog.yaml' },
    certificates: { kind: 'builtin', tokenFile: 'join-token' },
    services,
    capture: { mode: host === authority ? 'off' : 'on' },
    timeouts: { drain: '2s' },
  })
  const here = { hostmesh_agent_config: config(authority, []) }
  await controller.manage(
    new Map([
      ...(options.isAuthorityHost === true ? [[authority, here] as const] : []),
      [a, { hostmesh_agent_config: config(a, [web]) }],
      [b, { hostmesh_agent_config: config(b, [db, ...(options.more ?? [])]) }],
    ]),
    {
      hostmesh_agent_package: tarball,
      hostmesh_agent_wait: '20s',
      hostmesh_agent_catalog: catalogOf(b),
    },
    new Map([
      [
        authority,
        {
          hostmesh_ca_package: tarball,
          hostmesh_ca_trust_domain: options.trustDomain ?? TRUST_DOMAIN,
          hostmesh_ca_advertise: `${authority.ip}:15444`,
          hostmesh_ca_options: options.options ?? [],
        },
      ],
    ]),
  )
}

async function caStatus(): Promise<CaStatus> {
  const status = ['hostmesh', 'ca', 'status', '--directory', CA_DIRECTORY, '--output', 'json']
  return JSON.parse(await authority.must(...status)) as CaStatus
}

async function certs(machine: Machine): Promise<CertsDocument> {
  return JSON.parse(await machine.must('hostmesh', 'certs', '-o', 'json')) as CertsDocument
}

async function hostSerial(machine: Machine): Promise<string> {
  return new X509Certificate(await machine.must('cat', HOST_CERTIFICATE)).serialNumber
}

/** 0 to 10, as the running systemd judges a unit. */
async function exposure(machine: Machine, unit: string): Promise<number> {
  const said = await machine.must('systemd-analyze', 'security', '--no-pager', unit)
  const figure = /Overall exposure level for \S+: (\d+\.\d)/.exec(said)?.[1]
  assert.ok(figure !== undefined, said)
  return Number(figure)
}

/** Both hosts are well, and web reaches db. */
async function wellAgain(): Promise<void> {
  for (const machine of [a, b]) await statusOnceWell(machine)
  await webReachesDb(a)
}

/** The authority does its work: it takes back a certificate, and gives the host another that serves. */
async function renewsLeaf(): Promise<void> {
  const serialOf = async () => (await certs(a)).leaves[0]?.serialNumber
  const serial = await serialOf()
  assert.ok(serial !== undefined)
  const revoke = ['hostmesh', 'ca', 'revoke', '--directory', CA_DIRECTORY, '--serial', serial]
  await authority.must(...revoke)
  await eventually(async () => assert.notEqual(await serialOf(), serial))
  await wellAgain()
}
