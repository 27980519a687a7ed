/**
 * The life of hostmesh on two real machines, in order: rolled out by Ansible over SSH, run by systemd under the
 * hardening of its unit, changed, broken, killed, rebooted, and removed without a trace.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { after, before, test } from 'node:test'
import { gzipSync } from 'node:zlib'

import type { ConfigInput } from '../../src/config/schema.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { startDnsmasq } from '../harness/resolver.ts'
import { AT_ONCE, Controller } from './controller.ts'
import { Machine } from './machine.ts'
import { makePackage } from './services.ts'
import {
  askWeb,
  catalogOf,
  DB_PORT,
  db,
  enableWebAndDb,
  issueCertificates,
  statusOnceWell,
  web,
  webAndDbFiles,
  webReachesDb,
} from './web-and-db.ts'

/** CAP_NET_ADMIN and CAP_NET_RAW, and nothing else, as /proc prints them. */
const ALLOWED_CAPABILITIES = '0000000000003000'

const cleanUp = new AsyncDisposableStack()
let network: Network
let controller: Controller
let a: Machine
let b: Machine
let tarball: string
let rulesBefore: string
let filesBefore: readonly string[]

before(async () => {
  network = cleanUp.use(await Network.create(['a', 'b']))
  controller = cleanUp.use(await Controller.create(network.wire))
  const files = {
    '/root/.ssh/authorized_keys': controller.publicKey,
    ...(await webAndDbFiles()),
  }
  a = cleanUp.use(
    await Machine.create('host-a', network.host('a'), {
      ...files,
      '/etc/resolv.conf': 'nameserver 127.0.0.53\n',
    }),
  )
  b = cleanUp.use(await Machine.create('host-b', network.host('b'), files))
  await Promise.all([a.boot(), b.boot()])
  await enableWebAndDb(a, b)
  await issueCertificates(
    controller,
    new Map([
      ['host-a', ['web']],
      ['host-b', ['db']],
    ]),
  )
  tarball = await makePackage(controller.folder)
  await describeFleet({})
  rulesBefore = await a.namespace.rules()
  filesBefore = await a.files()
})

after(() => cleanUp.disposeAsync())

test('check mode on new machines succeeds and touches nothing', async () => {
  await controller.mustPlay('site', ...AT_ONCE, '--check')
  assert.deepEqual(await a.files(), filesBefore)
  assert.equal((await a.run('id', 'hostmesh')).code, 1)
})

test('one run of the playbook makes both machines well', async () => {
  await controller.mustPlay('site')
  for (const machine of [a, b]) {
    assert.deepEqual((await statusOnceWell(machine)).problems, [])
    assert.equal(await machine.property('UnitFileState'), 'enabled')
    assert.equal(await machine.property('ActiveState'), 'active')
  }
})

test('what one service asks is captured, and answered by the other on its own machine', async () => {
  await webReachesDb(a)
  const { stdout } = await a.run('hostmesh', 'peers', '-o', 'json')
  assert.match(stdout, /svc\/db/)
})

test('with systemd-resolved an application finds a service by its name, and reaches it', async () => {
  assert.match(await a.must('resolvectl', 'query', '--legend=no', 'db.mesh'), /240\.88\.0\.2\b/)
  // In web's cgroup, and by way of the C library.
  const ask = `
import socket
with open("/sys/fs/cgroup/system.slice/web.service/cgroup.procs", "w") as procs: procs.write("0")
connection = socket.create_connection(("db.mesh", ${DB_PORT}), 5)
connection.sendall(b"ping\\n")
print(connection.makefile().readline(), end="")
`
  assert.equal(await a.must('python3', '-c', ask), 'host-b heard ping\n')
})

test('with systemd-resolved the servers of the link answer for other names', async () => {
  const address = '10.88.0.254'
  await using outside = await startDnsmasq(network.wire, address, [
    '--address=/outside.example/192.0.2.10',
  ])
  assert.ok(!outside.hasExited)
  await a.must('resolvectl', 'dns', 'eth0', address)
  for (let i = 0; i < 5; i += 1) {
    await a.must('resolvectl', 'flush-caches')
    const found = await a.must('resolvectl', 'query', '--legend=no', 'outside.example')
    assert.match(found, /192\.0\.2\.10/)
    assert.match(await a.must('resolvectl', 'query', '--legend=no', 'db.mesh'), /240\.88\.0\.2\b/)
  }
  await a.must('resolvectl', 'revert', 'eth0')
})

test('a service whose unit restarts has a new cgroup, and is captured again', async () => {
  await a.must('systemctl', 'restart', 'web.service')
  await webReachesDb(a)
})

test('the daemon runs as its own user, watched, with two capabilities and its system calls filtered', async () => {
  const field = await a.mainProcess()
  const uid = (await a.must('id', '-u', 'hostmesh')).trim()
  assert.equal(field('Uid'), Array(4).fill(uid).join('\t'))
  for (const set of ['CapPrm', 'CapEff', 'CapBnd', 'CapAmb'])
    assert.equal(field(set), ALLOWED_CAPABILITIES, set)
  assert.equal(field('NoNewPrivs'), '1')
  assert.equal(field('Seccomp'), '2')
  assert.equal(await a.property('Type'), 'notify')
  assert.equal(await a.property('WatchdogUSec'), '30s')
  assert.match(await a.property('StatusText'), /^serving web/)
  assert.equal(await a.property('NRestarts'), '0')
})

test('configuration, keys and socket are for root and the daemon alone', async () => {
  const paths = [
    '/etc/hostmesh/hostmesh.yaml',
    '/etc/hostmesh/catalog.yaml',
    '/etc/hostmesh/certs',
    '/etc/hostmesh/certs/web.key',
    '/run/hostmesh/admin.sock',
  ]
  const modes = await a.must('stat', '--format=%n %a %U:%G', ...paths)
  assert.equal(
    modes,
    [
      '/etc/hostmesh/hostmesh.yaml 640 root:hostmesh',
      '/etc/hostmesh/catalog.yaml 640 root:hostmesh',
      '/etc/hostmesh/certs 750 root:hostmesh',
      '/etc/hostmesh/certs/web.key 640 root:hostmesh',
      '/run/hostmesh/admin.sock 660 hostmesh:hostmesh\n',
    ].join('\n'),
  )
})

test('a second run changes nothing', async () => {
  const pid = await a.property('MainPID')
  const run = await controller.mustPlay('site', ...AT_ONCE)
  assert.deepEqual([run.hosts['host-a']?.changed, run.hosts['host-b']?.changed], [0, 0], run.output)
  assert.equal(await a.property('MainPID'), pid)
})

test('a changed intention reaches the machines without a restart', async () => {
  const pid = await b.property('MainPID')
  await describeFleet({ intention: 'deny', config: { log: { level: 'debug' } } })
  await controller.mustPlay('site', ...AT_ONCE, '--tags', 'hostmesh_agent_configure')
  await eventually(async () => assert.doesNotMatch(await askWeb(a), /heard/))
  assert.equal(await b.property('MainPID'), pid)
})

test('a configuration that hostmesh refuses is never put in place, and ends the rollout', async () => {
  const [pidA, pidB] = [await a.property('MainPID'), await b.property('MainPID')]
  const onDisk = await a.must('cat', '/etc/hostmesh/hostmesh.yaml')
  await describeFleet({ config: { workers: 0 } })
  const checked = await controller.play('site', '--check')
  assert.equal(checked.hosts['host-a']?.failed, 1, `check mode: ${checked.output}`)
  assert.match(checked.output, /workers: /)
  const run = await controller.play('site')
  assert.notEqual(run.code, 0)
  assert.match(run.output, /hostmesh\.yaml[^\n]*workers|workers: /)
  assert.equal(run.hosts['host-a']?.failed, 1, run.output)
  assert.equal(run.hosts['host-b'], undefined, run.output)
  assert.equal(await a.must('cat', '/etc/hostmesh/hostmesh.yaml'), onDisk)
  assert.deepEqual([await a.property('MainPID'), await b.property('MainPID')], [pidA, pidB])
})

test('a machine that does not get well ends the rollout, with the reason, before the next one', async () => {
  const pidB = await b.property('MainPID')
  await describeFleet({ config: { tunnel: { port: 22 } } })
  const run = await controller.play('site')
  assert.notEqual(run.code, 0)
  assert.match(run.output, /port 22|:22\b/)
  assert.equal(run.hosts['host-a']?.failed, 1, run.output)
  assert.equal(run.hosts['host-b'], undefined, run.output)
  assert.equal(await b.property('MainPID'), pidB)
  // Rules that refuse stay, as after any stop: what web sends to db does not go past the mesh meanwhile.
  assert.doesNotMatch(await askWeb(a), /heard/)
})

test('a machine that runs but is not well fails the run, with the problem named', async () => {
  const gone = { name: 'web', identity: { cgroup: 'system.slice/gone.service' } }
  await describeFleet({ config: { services: [gone] } })
  const quick = ['--limit', 'host-a', '--extra-vars', 'hostmesh_agent_wait=1s']
  const run = await controller.play('site', ...quick)
  assert.equal(run.hosts['host-a']?.failed, 1, run.output)
  assert.match(run.output, /there is no cgroup system\.slice\/gone\.service/)
  assert.doesNotMatch(run.output, /:22\b/, 'the run before failed for a reason of its own')
})

test('the next good run mends it, and restarts what an earlier run changed and left running', async () => {
  const pid = await b.property('MainPID')
  await describeFleet({ config: { log: { level: 'debug' } } })
  await controller.mustPlay('site', ...AT_ONCE)
  await wellAgain(a)
  assert.notEqual(await b.property('MainPID'), pid)
})

test('another package replaces the program, and one earlier release stays', async () => {
  const former = await a.must('readlink', '-f', '/usr/bin/hostmesh')
  tarball = await repack(tarball)
  await describeFleet({ config: { log: { level: 'debug' } } })
  await controller.mustPlay('site', '--limit', 'host-a')
  const now = await a.must('readlink', '-f', '/usr/bin/hostmesh')
  assert.notEqual(now, former)
  const command = await a.must('cat', `/proc/${await a.property('MainPID')}/cmdline`)
  assert.ok(command.includes(dirname(dirname(now.trim()))), command)
  assert.equal((await a.must('ls', '/opt/hostmesh/releases')).trim().split('\n').length, 2)
  await wellAgain(a)
})

test('after kill -9 systemd brings the daemon back', async () => {
  const restarts = await a.restarts()
  await a.must('systemctl', 'kill', '--kill-whom=main', '--signal=KILL', 'hostmesh.service')
  await eventually(async () => assert.equal(await a.restarts(), restarts + 1))
  await wellAgain(a)
})

test('a daemon that hangs is ended by the watchdog, and replaced', async () => {
  await a.hang('hostmesh.service')
  assert.match(
    await a.must('journalctl', '--unit', 'hostmesh', '--lines', '200'),
    /Watchdog timeout/,
  )
  await wellAgain(a)
})

test('a stop leaves rules that refuse, and a start serves again', async () => {
  const rules = await a.namespace.rules()
  await a.must('systemctl', 'stop', 'hostmesh.service')
  assert.equal(await a.namespace.rules(), rules)
  assert.equal(await askWeb(a), 'ConnectionRefusedError\n')
  assert.equal((await a.run('test', '-e', '/run/hostmesh')).code, 1)
  await a.must('systemctl', 'start', 'hostmesh.service')
  await wellAgain(a)
})

test('a machine that reboots comes back well', async () => {
  await a.reboot()
  await wellAgain(a)
})

test('a machine whose power was cut comes back well, whatever rules it left', async () => {
  await a.cutPower()
  assert.match(await a.namespace.rules(), /table inet hostmesh/)
  await a.boot()
  await wellAgain(a)
})

test('a crash lets no connection out', async () => {
  await a.must('systemctl', 'kill', '--kill-whom=main', '--signal=KILL', 'hostmesh.service')
  await eventually(async () => assert.equal(await a.property('SubState'), 'start'))
  assert.match(await a.namespace.rules(), /table inet hostmesh/)
  await wellAgain(a)
})

test('removing hostmesh leaves no file, user, unit or rule', async () => {
  await controller.mustPlay('uninstall', ...AT_ONCE)
  assert.deepEqual(await a.files(), filesBefore)
  assert.equal((await a.run('getent', 'passwd', 'hostmesh')).code, 2)
  assert.equal((await a.run('getent', 'group', 'hostmesh')).code, 2)
  assert.equal(await a.property('LoadState'), 'not-found')
  for (const machine of [a, b]) assert.equal(await machine.namespace.rules(), rulesBefore)
  const again = await controller.mustPlay('uninstall', ...AT_ONCE)
  assert.deepEqual([again.hosts['host-a']?.changed, again.hosts['host-b']?.changed], [0, 0])
})

/** A package of other bytes and the same content: gzip ignores an empty member at the end. */
async function repack(original: string): Promise<string> {
  const folder = join(controller.folder, 'repacked')
  await mkdir(folder)
  const copy = join(folder, basename(original))
  const bytes = Buffer.concat([await readFile(original), gzipSync('')])
  await writeFile(copy, bytes)
  const sum = createHash('sha256').update(bytes).digest('hex')
  await writeFile(`${copy}.sha256`, `${sum}  ${basename(copy)}\n`)
  return copy
}

/** Writes the inventory. Sections of `config` replace those of every host. */
async function describeFleet(options: {
  readonly intention?: 'allow' | 'deny'
  readonly config?: Partial<ConfigInput>
}): Promise<void> {
  const config = (host: Machine, services: ConfigInput['services']): ConfigInput => ({
    node: { name: host.name },
    catalog: { kind: 'file', path: 'catalog.yaml' },
    certificates: { kind: 'files', directory: 'certs' },
    services,
    capture: { mode: 'on' },
    admin: { group: 'hostmesh' },
    timeouts: { drain: '2s' },
    ...options.config,
  })
  await controller.manage(
    new Map([
      [
        a,
        {
          hostmesh_agent_config: config(a, [web]),
          hostmesh_agent_resolver: 'systemd-resolved',
        },
      ],
      [b, { hostmesh_agent_config: config(b, [db]) }],
    ]),
    {
      hostmesh_agent_package: tarball,
      hostmesh_agent_certificates: `${controller.folder}/certificates/{{ inventory_hostname }}`,
      hostmesh_agent_wait: '20s',
      hostmesh_agent_catalog: catalogOf(b, options.intention),
    },
  )
}

async function wellAgain(machine: Machine): Promise<void> {
  await statusOnceWell(machine)
  assert.match(await machine.namespace.rules(), /table inet hostmesh/)
  await webReachesDb(a)
}
