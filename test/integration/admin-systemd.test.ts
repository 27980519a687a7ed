/**
 * What the daemon tells systemd, received by a real datagram socket; and the unit files, judged by systemd's
 * own tools. systemd need not run here: `systemd-analyze` and its like come with the package systemd.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { promisify } from 'node:util'
import { stringify } from 'yaml'
import { buildProgram } from '../../src/cli/program.ts'
import { ListeningSockets } from '../../src/daemon/listening-sockets.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import { connectSystemd } from '../../src/lib/systemd.ts'
import { openSystemdSocket } from '../../src/lib/systemd-notify.ts'
import { eventually, within } from '../harness/eventually.ts'
import { temporaryDirectory } from './admin-fixtures.ts'
import { freePort } from './dataplane-fixtures.ts'

const run = promisify(execFile)
const root = new URL('../..', import.meta.url).pathname

/** A datagram socket as systemd has one; prints what it gets, a JSON string a line. Perl is in every Debian. */
const RECEIVER = `
use strict; use Socket;
my $name = $ARGV[0];
socket(my $socket, AF_UNIX, SOCK_DGRAM, 0) or die "socket: $!";
my $address = substr($name, 0, 1) eq '@' ? pack('S a*', AF_UNIX, "\\0" . substr($name, 1)) : pack_sockaddr_un($name);
bind($socket, $address) or die "bind: $!";
$| = 1; print "listening\\n";
while (defined recv($socket, my $message, 65536, 0)) { $message =~ s/\\n/\\\\n/g; print "$message\\n"; }
`

class Receiver implements AsyncDisposable {
  private readonly child: ChildProcess
  private text = ''

  private constructor(name: string) {
    this.child = spawn('perl', ['-e', RECEIVER, name], { stdio: ['ignore', 'pipe', 'inherit'] })
    this.child.stdout?.on('data', (chunk: Buffer) => {
      this.text += chunk.toString()
    })
  }

  static async listen(name: string): Promise<Receiver> {
    const receiver = new Receiver(name)
    await eventually(() => assert.match(receiver.text, /^listening\n/))
    return receiver
  }

  /** The datagrams so far; newlines within one as \\n. */
  messages(): string[] {
    return this.text.split('\n').slice(1, -1)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const exited = once(this.child, 'exit')
    this.child.kill()
    await exited
  }
}

function recordingLog(): { log: Log; lines: string[] } {
  const recorded: string[] = []
  const note = (message: string): void => {
    recorded.push(message)
  }
  const log: Log = { debug: note, info: note, warn: note, error: note, child: () => log }
  return { log, lines: recorded }
}

// A unit's daemon keeps its ports when it has stopped; this machine's own daemon may have had such a table before.
const hadPorts = tablePresence()
after(async () => {
  if (!(await hadPorts) && (await tablePresence()))
    await run('nft', ['delete', 'table', 'inet', 'hostmesh_ports'])
})

/** Whether the table that keeps ports is there. */
async function tablePresence(): Promise<boolean> {
  return run('nft', ['list', 'table', 'inet', 'hostmesh_ports']).then(
    () => true,
    () => false,
  )
}

test('messages arrive at a socket that is a path and at one that is abstract', async () => {
  await using directory = await temporaryDirectory()
  for (const name of [join(directory.path, 'notify'), `@hostmesh-test-${process.pid}`]) {
    await using receiver = await Receiver.listen(name)
    using socket = openSystemdSocket(name)
    assert.equal(socket.send('READY=1\nSTATUS=grüß'), true)
    await eventually(() => assert.deepEqual(receiver.messages(), ['READY=1\\nSTATUS=grüß']))
  }
})

test('the life of a daemon is told in order, and READY never follows STOPPING', async () => {
  await using directory = await temporaryDirectory()
  const name = join(directory.path, 'notify')
  await using receiver = await Receiver.listen(name)
  using systemd = connectSystemd({ log: silentLog, environment: { NOTIFY_SOCKET: name } })
  systemd.status('waiting for\nREADY=1 roots')
  systemd.ready()
  systemd.ready()
  systemd.stopping()
  systemd.stopping()
  systemd.ready()
  systemd.status('last')
  await eventually(() => assert.equal(receiver.messages().at(-1), 'STATUS=last'))
  assert.deepEqual(receiver.messages(), [
    'STATUS=waiting for READY=1 roots',
    'READY=1',
    'STOPPING=1',
    'STATUS=last',
  ])
})

test('the watchdog is fed from readiness on, at half of its time, and only while the daemon is alive', async () => {
  await using directory = await temporaryDirectory()
  const name = join(directory.path, 'notify')
  await using receiver = await Receiver.listen(name)
  let isAlive = true
  const { log, lines } = recordingLog()
  using systemd = connectSystemd({
    log,
    isAlive: () => isAlive,
    environment: {
      NOTIFY_SOCKET: name,
      WATCHDOG_USEC: '200000',
      WATCHDOG_PID: String(process.pid),
    },
  })
  const fed = (): number => receiver.messages().filter((message) => message === 'WATCHDOG=1').length
  systemd.status('starting')
  await eventually(() => assert.equal(receiver.messages().length, 1))
  const startMs = performance.now()
  systemd.ready()
  await eventually(() => assert.ok(fed() >= 4))
  assert.ok(performance.now() - startMs >= 250, 'not fed faster than every 100 ms')
  isAlive = false
  await eventually(() => assert.ok(lines.some((line) => line.startsWith('Withholding'))))
  const before = fed()
  const withheld = lines.length
  await eventually(() => assert.ok(lines.length > withheld))
  assert.equal(fed(), before)
})

test('READY comes when the host serves, and a late one is told so without the mark of serving', async () => {
  await using directory = await temporaryDirectory()
  const name = join(directory.path, 'notify')
  await using receiver = await Receiver.listen(name)
  const certificates = join(directory.path, 'certs')
  const catalog = join(directory.path, 'catalog.yaml')
  const config = join(directory.path, 'hostmesh.yaml')
  const mark = join(directory.path, 'serving')
  await mkdir(certificates)
  await writeFile(catalog, stringify({ services: [] }))
  const hostmesh = join(root, 'scripts/hostmesh')
  const start = async (patience: string): Promise<ChildProcess> => {
    await writeFile(
      config,
      stringify({
        node: { name: 'host-a' },
        admin: { socket: join(directory.path, 'admin.sock') },
        state: { directory: join(directory.path, 'state') },
        tunnel: { address: '127.0.0.1', port: await freePort() },
        dns: { port: await freePort() },
        catalog: { kind: 'file', path: catalog },
        certificates: { kind: 'files', directory: certificates },
        services: [{ name: 'web', port: 80 }],
        timeouts: { ready: patience },
      }),
      { mode: 0o600 },
    )
    return spawn(hostmesh, ['run', '--config', config], {
      env: { ...process.env, NOTIFY_SOCKET: name, RUNTIME_DIRECTORY: directory.path },
      stdio: ['ignore', 'ignore', 'inherit'],
    })
  }
  const stop = async (daemon: ChildProcess): Promise<void> => {
    const exited = once(daemon, 'exit')
    daemon.kill('SIGTERM')
    assert.deepEqual(await within(20_000, 'the daemon ends', exited), [0, null])
  }
  const readies = (): number => receiver.messages().filter((text) => text === 'READY=1').length

  const late = await start('2s')
  await eventually(() => assert.equal(readies(), 1), { withinMs: 20_000 })
  const statuses = receiver.messages().filter((text) => text.startsWith('STATUS='))
  assert.match(statuses.at(-1) ?? '', /HM_HOST_NOT_READY.*roots, the certificate of web/)
  assert.equal(existsSync(mark), false)
  const inDirectory = { cwd: directory.path }
  await run(hostmesh, ['ca', 'init', '--directory', 'ca', '--trust-domain', 'm.test'], inDirectory)
  const issue = ['ca', 'issue', '--directory', 'ca', '--service', 'web', '--out', certificates]
  await run(hostmesh, issue, inDirectory)
  await eventually(() => assert.equal(existsSync(mark), true), { withinMs: 20_000 })
  assert.equal(readies(), 1)
  await stop(late)
  assert.equal(existsSync(mark), false)

  const prompt = await start('1h')
  await eventually(() => assert.equal(readies(), 2), { withinMs: 20_000 })
  await eventually(() => assert.equal(existsSync(mark), true))
  await stop(prompt)
})

test('a watchdog that is meant for another process is not fed', async () => {
  await using directory = await temporaryDirectory()
  const name = join(directory.path, 'notify')
  await using receiver = await Receiver.listen(name)
  using systemd = connectSystemd({
    log: silentLog,
    environment: { NOTIFY_SOCKET: name, WATCHDOG_USEC: '1000', WATCHDOG_PID: '1' },
  })
  systemd.ready()
  systemd.status('end')
  await eventually(() => assert.deepEqual(receiver.messages(), ['READY=1', 'STATUS=end']))
})

test('outside of systemd, or when it does not listen, the daemon runs on', async () => {
  await using directory = await temporaryDirectory()
  const { log, lines } = recordingLog()
  using none = connectSystemd({ log, environment: {} })
  none.ready()
  none.stopping()
  assert.deepEqual(lines, [])
  using away = connectSystemd({
    log,
    environment: { NOTIFY_SOCKET: join(directory.path, 'nobody') },
  })
  away.ready()
  assert.deepEqual(lines, ['Cannot notify systemd'])
  using strange = connectSystemd({ log, environment: { NOTIFY_SOCKET: 'vsock:2:1234' } })
  strange.ready()
  assert.equal(lines.length, 2)
})

/** What systemd does with descriptors that it is sent: keeps them by name, once each, until it is told not to. */
const STORE = `
import json, os, socket, sys
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.bind(sys.argv[1])
kept = []
print("listening", flush=True)
while True:
    data, fds, *_ = socket.recv_fds(notify, 65536, 16)
    fields = dict(line.split("=", 1) for line in data.decode().split("\\n"))
    if fields.get("FDSTORE") == "1":
        for fd in fds:
            if not any(os.path.sameopenfile(fd, known) for _, known in kept):
                kept.append((fields["FDNAME"], fd))
    if fields.get("FDSTOREREMOVE") == "1":
        for name, fd in [entry for entry in kept if entry[0] == fields["FDNAME"]]:
            os.close(fd)
            kept.remove((name, fd))
    print(json.dumps([[name, socket.socket(fileno=os.dup(fd)).getsockname()[1]] for name, fd in kept]), flush=True)
`

test('listening sockets are kept by systemd under their names, however many, and given up one by one', async () => {
  await using directory = await temporaryDirectory()
  const name = join(directory.path, 'notify')
  const store = spawn('python3', ['-c', STORE, name], { stdio: ['ignore', 'pipe', 'inherit'] })
  let text = ''
  store.stdout.on('data', (chunk: Buffer) => {
    text += chunk.toString()
  })
  await eventually(() => assert.match(text, /^listening\n/))
  const kept = (): unknown => JSON.parse(text.split('\n').at(-2) ?? '')
  using systemd = connectSystemd({ log: silentLog, environment: { NOTIFY_SOCKET: name } })
  using sockets = new ListeningSockets(silentLog, { keeper: systemd })
  const planned = await Promise.all(
    Array.from({ length: 40 }, async (_, i) => ({
      name: `upstream/web/127.0.0.1/${i}`,
      kind: i % 2 === 0 ? ('tcp' as const) : ('udp' as const),
      address: { ip: '127.0.0.1', port: await freePort() },
      transparent: false,
      isOptional: false,
    })),
  )
  for (const socket of planned) sockets.take(socket)
  const ports = planned.map((socket) => [socket.name, socket.address.port])
  await eventually(() => assert.deepEqual(kept(), ports))
  sockets.giveUp('upstream/web/127.0.0.1/7')
  await eventually(() => assert.deepEqual(kept(), ports.toSpliced(7, 1)))
  store.kill()
  await once(store, 'exit')
})

test("systemd's variables are taken out of the environment that child processes get", async () => {
  const module = JSON.stringify(new URL('../../src/lib/systemd.ts', import.meta.url).href)
  const script = `
    const { takeSystemdEnvironment } = await import(${module})
    const taken = takeSystemdEnvironment()
    const { execFileSync } = await import('node:child_process')
    console.log(JSON.stringify({ taken, child: execFileSync('env').toString() }))`
  const { stdout } = await run(process.execPath, ['--input-type=module', '-e', script], {
    env: { ...process.env, NOTIFY_SOCKET: '/run/x', WATCHDOG_USEC: '5', WATCHDOG_PID: '7' },
  })
  const { taken, child } = JSON.parse(stdout)
  assert.deepEqual(taken, { NOTIFY_SOCKET: '/run/x', WATCHDOG_USEC: '5', WATCHDOG_PID: '7' })
  assert.doesNotMatch(child, /NOTIFY_SOCKET|WATCHDOG/)
})

for (const unit of [
  'hostmesh.service',
  'hostmesh-ca.service',
  'hostmesh-aggregator.service',
  'hostmesh-guard.service',
  'hostmesh-ready.target',
  'hostmesh-ready.path',
]) {
  test(`systemd-analyze verify finds nothing wrong with ${unit}`, async () => {
    await using directory = await temporaryDirectory()
    // verify also looks whether the programs exist: give it this checkout's.
    const text = await readFile(join(root, 'systemd', unit), 'utf8')
    const path = join(directory.path, unit)
    await writeFile(path, text.replaceAll('/usr/bin/hostmesh', join(root, 'scripts/hostmesh')))
    const { stdout, stderr } = await run('systemd-analyze', ['verify', '--man=no', path])
    // Units of this machine that verify loads on the way are not ours to judge.
    const ours = `${stdout}${stderr}`.split('\n').filter((line) => line.includes('hostmesh'))
    assert.deepEqual(ours, [])
  })
}

const services = [
  'hostmesh.service',
  'hostmesh-ca.service',
  'hostmesh-aggregator.service',
  'hostmesh-guard.service',
]

for (const unit of services) {
  test(`${unit} exposes at most 2.0 of 10 by systemd-analyze security`, async () => {
    const { stdout } = await run('systemd-analyze', [
      'security',
      '--offline=true',
      '--no-pager',
      '--threshold=20',
      join(root, 'systemd', unit),
    ])
    assert.match(stdout, /Overall exposure level for hostmesh(-\w+)?\.service: [01]\.\d OK/)
  })
}

test('every hostmesh command in the units exists, and so does every option it is given', async () => {
  const units = await Promise.all(
    services.map((unit) => readFile(join(root, 'systemd', unit), 'utf8')),
  )
  const commands = [...units.join('\n').matchAll(/^Exec\w+=[-+]*\/usr\/bin\/hostmesh (.+)$/gm)].map(
    ([, words]) => (words ?? '').split(' '),
  )
  assert.equal(commands.length, 5)
  const program = await buildProgram()
  for (const words of commands) {
    let command = program
    for (const word of words) {
      const next = command.commands.find((child) => child.name() === word)
      if (next === undefined) break
      command = next
    }
    assert.equal(command.commands.length, 0, `${words.join(' ')} names a whole command`)
    const known = command.options.map(({ long }) => long)
    for (const word of words.filter((text) => text.startsWith('--')))
      assert.ok(known.includes(word), `${words.join(' ')}: ${word}`)
  }
})

test('sysusers and tmpfiles make the user and the directories that the unit needs', async () => {
  await using directory = await temporaryDirectory()
  await mkdir(join(directory.path, 'etc'))
  const systemd = (program: string, args: string[]): Promise<unknown> =>
    within(20_000, program, run(program, [`--root=${directory.path}`, ...args]))
  await systemd('systemd-sysusers', [join(root, 'systemd/hostmesh.sysusers')])
  const passwd = await readFile(join(directory.path, 'etc/passwd'), 'utf8')
  const [, uid] =
    /^hostmesh:[^:]*:(\d+):\d+:[^:]*:\/var\/lib\/hostmesh:\/usr\/sbin\/nologin$/m.exec(passwd) ?? []
  assert.ok(uid !== undefined, passwd)
  await systemd('systemd-tmpfiles', ['--create', join(root, 'systemd/hostmesh.tmpfiles')])
  const modes: [string, number, number][] = [
    ['etc/hostmesh', 0o755, 0],
    ['etc/hostmesh/certs', 0o750, 0],
    ['var/lib/hostmesh', 0o700, Number(uid)],
  ]
  for (const [path, mode, owner] of modes) {
    const made = await stat(join(directory.path, path))
    assert.deepEqual([made.mode & 0o777, made.uid], [mode, owner], path)
  }
})
