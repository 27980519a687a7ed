/**
 * `hostmesh uninstall` on a root of its own: what it removes, what it leaves, and that a broken configuration
 * is no obstacle.
 */
import assert from 'node:assert/strict'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { test } from 'node:test'
import { stateNames } from '../../src/daemon/state-files.ts'
import {
  endsWithUnits,
  planUninstall,
  type RunTool,
  uninstall,
} from '../../src/daemon/uninstall.ts'
import { hostmesh } from './admin-fixtures.ts'

const CONFIG = '/etc/hostmesh/hostmesh.yaml'

/** A machine's files, and the tools that were run. */
class Root implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), 'hmt-root-'))
  readonly commands: string[] = []
  cleared = 0

  put(...paths: readonly string[]): void {
    for (const path of paths) this.write(path, 'x')
  }

  write(path: string, text: string): void {
    mkdirSync(dirname(join(this.path, path)), { recursive: true })
    writeFileSync(join(this.path, path), text)
  }

  has(path: string): boolean {
    return existsSync(join(this.path, path))
  }

  async uninstall(): Promise<Awaited<ReturnType<typeof uninstall>> & { kept: readonly string[] }> {
    const run: RunTool = async (tool, args) => {
      this.commands.push([tool, ...args].join(' '))
      return { status: 0, stdout: '', stderr: '' }
    }
    const plan = planUninstall({ root: this.path, configPath: CONFIG })
    const report = await uninstall(plan, {
      root: this.path,
      configPath: CONFIG,
      run,
      clearCapture: async () => {
        this.cleared += 1
        return ['capture rules']
      },
    })
    return { ...report, kept: plan.kept }
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true })
  }
}

function installed(root: Root): void {
  root.put(
    '/usr/lib/systemd/system/hostmesh.service',
    '/etc/systemd/system/hostmesh.service.d/override.conf',
    '/etc/systemd/resolved.conf.d/hostmesh.conf',
    '/var/lib/hostmesh/certificates/host.pem',
    '/var/lib/hostmesh/catalog.json',
    '/etc/hostmesh/certs/web.key',
    '/etc/hostmesh/consul.token',
    '/opt/hostmesh/releases/1/scripts/hostmesh',
    '/etc/passwd',
  )
  mkdirSync(join(root.path, '/usr/bin'), { recursive: true })
  symlinkSync('/opt/hostmesh/current/scripts/hostmesh', join(root.path, '/usr/bin/hostmesh'))
}

test('nothing of it is left, and nothing else is touched', async () => {
  using root = new Root()
  installed(root)
  root.put('/usr/lib/systemd/system/other.service')
  const { removed, failed } = await root.uninstall()
  assert.deepEqual(failed, [])
  for (const path of [
    '/usr/lib/systemd/system/hostmesh.service',
    '/etc/systemd/system/hostmesh.service.d',
    '/etc/systemd/resolved.conf.d',
    '/var/lib/hostmesh',
    '/etc/hostmesh',
    '/opt/hostmesh',
  ]) {
    assert.ok(!root.has(path), path)
    assert.ok(removed.includes(path), `${path} is reported`)
  }
  assert.ok(removed.includes('/usr/bin/hostmesh'), 'a link that leads nowhere too')
  assert.ok(root.has('/etc/passwd') && root.has('/usr/lib/systemd/system/other.service'))
  assert.equal(root.cleared, 1)
  const order = [
    'try-restart systemd-resolved',
    'disable --now hostmesh.service',
    'daemon-reload',
    'userdel',
  ]
  const at = order.map((part) => root.commands.findIndex((line) => line.includes(part)))
  assert.ok(
    at.every((position) => position >= 0),
    root.commands.join('; '),
  )
  assert.deepEqual(
    at,
    at.toSorted((a, b) => a - b),
  )
})

test('a broken configuration still says where keys and state are', async () => {
  using root = new Root()
  root.write(
    CONFIG,
    'workres: many\nstate: { directory: /srv/state }\ncertificates: { kind: files, directory: /srv/keys }\n' +
      'catalog: { kind: file, path: /srv/catalog.yaml }\nservices: [ { name: web, port: what } ]\ntunnel: {',
  )
  root.put(
    ...stateNames.map((name) => `/srv/state/${name}.json`),
    '/srv/state/certificates.json.broken',
    '/srv/state/of-others',
  )
  root.put(
    '/srv/keys/web.key',
    '/srv/keys/web.pem',
    '/srv/keys/roots.pem',
    '/srv/keys/trust-domain',
  )
  root.put('/srv/catalog.yaml')
  const { failed, kept } = await root.uninstall()
  assert.deepEqual(failed, [])
  assert.ok(!root.has('/srv/keys'), 'no key is left, and an empty folder neither')
  for (const name of [...stateNames.map((state) => `${state}.json`), 'certificates.json.broken'])
    assert.ok(!root.has(`/srv/state/${name}`), name)
  assert.ok(root.has('/srv/state/of-others'))
  assert.ok(root.has('/srv/catalog.yaml'))
  assert.match(kept.join(), /\/srv\/catalog\.yaml/)
})

test('beside the certificate authority its program, user and files stay', async () => {
  using root = new Root()
  installed(root)
  root.put(
    '/usr/lib/systemd/system/hostmesh-ca.service',
    '/etc/hostmesh/ca.env',
    '/var/lib/hostmesh-ca/ca.key',
  )
  const { failed, kept } = await root.uninstall()
  assert.deepEqual(failed, [])
  for (const path of ['/etc/hostmesh/ca.env', '/opt/hostmesh', '/var/lib/hostmesh-ca/ca.key'])
    assert.ok(root.has(path), path)
  assert.ok(root.has('/usr/lib/systemd/system/hostmesh-ca.service'))
  assert.ok(!root.has('/etc/hostmesh/certs') && !root.has('/var/lib/hostmesh'))
  assert.ok(!root.commands.some((line) => line.includes('hostmesh-ca')))
  assert.match(kept.join(), /certificate authority/)
})

test('beside the aggregator its program, unit, configuration and database stay', async () => {
  using root = new Root()
  installed(root)
  const kept = [
    '/usr/lib/systemd/system/hostmesh-aggregator.service',
    '/etc/systemd/system/hostmesh-aggregator.service.d/override.conf',
    '/etc/hostmesh/aggregator.yaml',
    '/opt/hostmesh/releases/1/scripts/hostmesh',
    '/var/lib/hostmesh-aggregator/fleet.db',
  ]
  root.put(...kept)
  const report = await root.uninstall()
  assert.deepEqual(report.failed, [])
  for (const path of kept) assert.ok(root.has(path), path)
  assert.ok(!root.has('/usr/lib/systemd/system/hostmesh.service') && !root.has('/var/lib/hostmesh'))
  assert.ok(!root.commands.some((line) => line.includes('hostmesh-aggregator')))
  assert.match(report.kept.join(), /the aggregator runs on this machine/)
})

test('what systemctl set-property has written goes too', async () => {
  using root = new Root()
  installed(root)
  const folders = [
    '/etc/systemd/system.control',
    '/run/systemd/system',
    '/run/systemd/system.control',
  ]
  root.put(...folders.map((folder) => `${folder}/hostmesh.service.d/50-CPUWeight.conf`))
  root.put(...folders.map((folder) => `${folder}/other.service.d/50-CPUWeight.conf`))
  const { failed } = await root.uninstall()
  assert.deepEqual(failed, [])
  for (const folder of folders) {
    assert.ok(!root.has(`${folder}/hostmesh.service.d`), folder)
    assert.ok(root.has(`${folder}/other.service.d`), folder)
  }
})

test('units of others that need one of ours are named, and those that only come after it are not', () => {
  using root = new Root()
  installed(root)
  const units = '/etc/systemd/system'
  root.write(`${units}/a.service`, '[Install]\nWantedBy=hostmesh-ready.target\n')
  root.write(`${units}/b.service.d/mesh.conf`, '[Unit]\nRequires=x.service hostmesh-ready.target\n')
  root.write(`${units}/c.service`, '[Unit]\nAfter=hostmesh.service\n# Requires=hostmesh.service\n')
  const { dependents } = planUninstall({ root: root.path, configPath: CONFIG })
  assert.deepEqual(dependents, [`${units}/a.service`, `${units}/b.service.d/mesh.conf`])
})

test('a daemon that somebody has started by hand does not end with the units', () => {
  using root = new Root()
  installed(root)
  const plan = planUninstall({ root: root.path, configPath: CONFIG })
  assert.ok(endsWithUnits(plan, '0::/system.slice/hostmesh.service\n'))
  for (const cgroups of ['0::/user.slice/session-1.scope\n', '0::/system.slice/x.service\n', ''])
    assert.ok(!endsWithUnits(plan, cgroups), cgroups)
})

test('a second time there is nothing to do', async () => {
  using root = new Root()
  installed(root)
  await root.uninstall()
  const { removed, failed } = await root.uninstall()
  assert.deepEqual(failed, [])
  assert.deepEqual(
    removed.filter((line) => line.startsWith('/')),
    [],
  )
})

test('what cannot be removed is said, and the rest goes on', async () => {
  using root = new Root()
  installed(root)
  const plan = planUninstall({ root: root.path, configPath: CONFIG })
  const { failed } = await uninstall(plan, {
    root: root.path,
    configPath: CONFIG,
    run: async () => ({ status: 1, stdout: '', stderr: 'no bus' }),
    clearCapture: () => Promise.reject(new Error('iptables is locked')),
  })
  assert.match(failed.join('\n'), /capture rules: iptables is locked/)
  assert.match(failed.join('\n'), /hostmesh\.service: no bus/)
  assert.ok(!root.has('/var/lib/hostmesh') && !root.has('/etc/hostmesh'))
})

test('the role of Ansible removes the same paths', () => {
  using root = new Root()
  installed(root)
  const { paths } = planUninstall({ root: root.path, configPath: CONFIG })
  const role = readFileSync(
    new URL('../../ansible/roles/agent/tasks/uninstall.yml', import.meta.url),
    'utf8',
  )
    .replaceAll('{{ hostmesh_agent_unit_file }}', '/usr/lib/systemd/system/hostmesh.service')
    .replaceAll('{{ hostmesh_agent_home }}', '/opt/hostmesh')
  for (const path of paths) assert.ok(role.includes(path), `${path} is in the role`)
})

test('without a terminal and without --yes nothing is removed; --dry-run says what would be', async () => {
  const refused = await hostmesh(['uninstall', '--config', '/nonexistent.yaml'])
  assert.equal(refused.code, 2, refused.stderr)
  assert.match(refused.stderr, /Nothing was removed/)
  const dry = await hostmesh(['uninstall', '--dry-run', '--config', '/nonexistent.yaml'])
  assert.equal(dry.code, 0)
  assert.match(dry.stdout, /This removes/)
})

test('where /lib is a link to /usr/lib a unit file is listed and removed once', async () => {
  using root = new Root()
  root.put('/usr/lib/systemd/system/hostmesh.service')
  symlinkSync('usr/lib', join(root.path, 'lib'))
  const { removed, failed } = await root.uninstall()
  assert.deepEqual(failed, [])
  assert.deepEqual(
    removed.filter((line) => line.includes('/hostmesh.service')),
    ['/usr/lib/systemd/system/hostmesh.service'],
  )
  assert.equal(root.has('/usr/lib/systemd/system/hostmesh.service'), false)
})
