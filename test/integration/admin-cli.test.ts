/**
 * The real executable against a real admin server with a scripted view: what is printed where, and exit codes.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { chmod, chown, cp, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { explain } from '../../src/daemon/explain/explain.ts'
import { MeshError } from '../../src/lib/errors.ts'
import type { StatusDocument } from '../../src/model/admin.ts'
import { facts } from '../unit/explain-fixtures.ts'
import {
  certs,
  connections,
  fromNow,
  hostmesh,
  peers,
  scriptedView,
  services,
  startScripted,
  temporaryDirectory,
  wellStatus,
} from './admin-fixtures.ts'

function waitingFor(name: string): StatusDocument {
  const problem = {
    code: 'HM_HOST_NOT_READY',
    message: `Not ready: waiting for ${name}`,
    hint: 'Wait',
    blocks: true,
    since: fromNow(-1_000),
  }
  return { ...wellStatus, ready: false, serving: false, awaited: [name], problems: [problem] }
}

function lines(text: string): string[] {
  return text.trimEnd().split('\n')
}

/** The cells of a table's line: columns are two spaces or more apart. */
function cells(line: string | undefined): string[] {
  return (line ?? '').trim().split(/ {2,}/)
}

test('status of a well host is a table, exit code 0, and nothing on standard error', async () => {
  await using server = await startScripted(scriptedView())
  const { code, stdout, stderr } = await hostmesh([
    'status',
    '--addr',
    `unix://${server.socketPath}`,
  ])
  assert.equal(stderr, '')
  assert.equal(code, 0)
  const printed = lines(stdout).map(cells)
  assert.deepEqual(printed.slice(0, 9), [
    ['HOST', 'host-a'],
    ['State', 'well'],
    ['Daemon', 'hostmesh 1.2.3, process 4242, up 3h'],
    ['Datacenter', 'dc1'],
    ['Catalog', 'consul http://127.0.0.1:8500, last answer 2s ago'],
    ['Certificates', 'files in /etc/hostmesh/certs'],
    ['Capture', 'on, rules in place'],
    ['DNS', '127.0.0.1:15053'],
    ['Snapshot', 'version 17'],
  ])
  assert.deepEqual(printed.slice(10), [
    ['WORKER', 'STATE', 'CONNECTIONS', 'RESTARTS'],
    ['0', 'running', '12', '0'],
    ['1', 'running', '7', '2'],
  ])
  assert.ok(!stdout.includes('\u001B'), 'no color on a pipe')
})

test('status of a well host with a warning says it, and is well all the same', async () => {
  const status: StatusDocument = { ...wellStatus, warnings: ['The default policy is allow'] }
  await using server = await startScripted(scriptedView({ status: () => Promise.resolve(status) }))
  const { code, stdout } = await hostmesh(['status'], {
    HOSTMESH_ADDR: `unix://${server.socketPath}`,
  })
  assert.equal(code, 0)
  assert.match(stdout, /State +well/)
  assert.match(stdout, /Warnings:\n +The default policy is allow/)
})

test('a problem of several lines is printed on several lines', async () => {
  const problem = {
    code: 'HM_CONFIG_INVALID',
    message: 'Configuration x.yaml has 2 problems:\n  x.yaml:1:1: one\n  x.yaml:2:1: two',
    hint: 'See',
    blocks: false,
    since: fromNow(-1_000),
  }
  await using server = await startScripted(
    scriptedView({ status: () => Promise.resolve({ ...wellStatus, problems: [problem] }) }),
  )
  const { stdout } = await hostmesh(['status', '--addr', `unix://${server.socketPath}`])
  assert.match(
    stdout,
    /has 2 problems:\n {4}x\.yaml:1:1: one\n {4}x\.yaml:2:1: two\n {4}Next: See\n/,
  )
})

test('status of a host that is not well says every problem and exits 1', async () => {
  const status: StatusDocument = {
    ...wellStatus,
    catalog: { ...wellStatus.catalog, ageMs: 720_000, problems: ['Cannot reach the agent'] },
    capture: { mode: 'on', inSync: false, problems: [] },
    state: {
      directory: '/var/lib/hostmesh',
      parts: [
        { part: 'services', state: 'stale', remembered: 2, ageMs: 7_200_000 },
        { part: 'policies', state: 'live', remembered: 0, ageMs: 400 },
        { part: 'certificates', state: 'remembered', remembered: 3, ageMs: 240_000 },
      ],
      problems: ['the disk is full'],
    },
    workers: [{ id: 0, state: 'stopped', connections: 0, restarts: 9 }],
    ready: false,
    problems: [
      {
        code: 'HM_CAPTURE_DRIFT',
        message: 'The capture rules in the kernel are not the wanted ones',
        hint: 'hostmesh capture show names the difference',
        blocks: true,
        since: fromNow(-1_230_000),
      },
      {
        code: 'HM_CONSUL_UNREACHABLE',
        message: 'Cannot reach the agent',
        hint: 'Start it',
        blocks: false,
        since: fromNow(-750_000),
      },
    ],
  }
  await using server = await startScripted(scriptedView({ status: () => Promise.resolve(status) }))
  const { code, stdout } = await hostmesh(['status'], {
    HOSTMESH_ADDR: `unix://${server.socketPath}`,
  })
  assert.equal(code, 1)
  const said = lines(stdout)
  assert.deepEqual(said.slice(said.indexOf('Problems:') + 1), [
    '  The capture rules in the kernel are not the wanted ones',
    '    Next: hostmesh capture show names the difference',
    '    HM_CAPTURE_DRIFT, for 20m',
    '  Cannot reach the agent',
    '    Next: Start it',
    '    HM_CONSUL_UNREACHABLE, for 12m',
  ])
  assert.match(stdout, /State +not well and not ready: it serves/)
  assert.match(stdout, /last answer 12m ago/)
  assert.match(
    stdout,
    /Freshness +services remembered, stale \(2h\), policies live, certificates remembered \(4m\)/,
  )
})

test('-o json prints exactly the document of the daemon, for every command', async () => {
  await using server = await startScripted(scriptedView())
  const expected: [string, unknown][] = [
    ['status', wellStatus],
    ['services', services],
    ['peers', peers],
    ['connections', connections],
    ['certs', certs],
  ]
  await Promise.all(
    expected.map(async ([command, document]) => {
      const run = await hostmesh([command, '-o', 'json', '--addr', `unix://${server.socketPath}`])
      assert.equal(run.code, 0, `${command}: ${run.stderr}`)
      assert.deepEqual(JSON.parse(run.stdout), document)
    }),
  )
})

test('services lists those of the mesh and of this host; with a name, its instances', async () => {
  await using server = await startScripted(scriptedView())
  const address = ['--addr', `unix://${server.socketPath}`]
  const all = await hostmesh(['services', ...address])
  assert.deepEqual(lines(all.stdout).map(cells), [
    ['SERVICE', 'PROTOCOL', 'HEALTHY', 'VIRTUAL ADDRESS'],
    ['db', 'tcp', '1/2', '240.1.2.3'],
    ['cache', 'tcp', '0/0', '-'],
    [''],
    ['ON THIS HOST', 'LISTENS AT', 'IDENTITY', 'CAPTURE PORT', 'UPSTREAMS'],
    [
      'web (web-1)',
      '127.0.0.1:8080',
      'cgroup system.slice/web.service',
      '15101',
      'db=127.0.0.1:5432',
    ],
  ])
  const one = await hostmesh(['services', 'db', ...address])
  assert.deepEqual(lines(one.stdout).map(cells), [
    ['INSTANCE', 'NODE', 'ADDRESS', 'HEALTH', 'LOCAL'],
    ['db-1', 'host-b', '10.0.0.7:15443', 'passing', '-'],
    ['db-2', 'host-c', '10.0.0.8:15443', 'critical', '-'],
    ['db-2 on host-c is critical: port 5432: connection refused'],
  ])
  const [{ endpoints } = { endpoints: [] }] = services.services
  const [first, second] = endpoints
  assert.ok(first !== undefined && second !== undefined)
  const reason = 'Cannot reach db at 10.0.0.7:15443'
  await using odd = await startScripted(
    scriptedView({
      services: () =>
        Promise.resolve({
          services: [
            {
              ...services.services[0]!,
              endpoints: [
                { ...first, ejected: { workers: 1, ofWorkers: 2, leftMs: 42_000, reason } },
                { ...second, service: 'db-copy', datacenter: 'dc2', priority: 1 },
              ],
            },
          ],
          local: [],
        }),
    }),
  )
  const other = await hostmesh(['services', 'db', '--addr', `unix://${odd.socketPath}`])
  assert.deepEqual(
    lines(other.stdout)
      .map(cells)
      .slice(0, 3)
      .map((row) => row.slice(-2)),
    [
      ['SERVES AS', 'EJECTED'],
      ['db in dc1', `for 42s more by 1/2 workers: ${reason}`],
      ['db-copy in dc2, failover 1', '-'],
    ],
  )
  const unknown = await hostmesh(['services', 'nosuch', ...address])
  assert.equal(unknown.code, 5)
  assert.equal(unknown.stdout, '')
  assert.match(unknown.stderr, /^hostmesh: Cannot show service nosuch: .*\n {2}hint: /)
})

test('peers and connections are tables with sizes and ages for people', async () => {
  await using server = await startScripted(scriptedView())
  const address = ['--addr', `unix://${server.socketPath}`]
  const tunnels = lines((await hostmesh(['peers', ...address])).stdout).map(cells)
  assert.deepEqual(tunnels[0], [
    'SOURCE',
    'DESTINATION',
    'PEER',
    'DIRECTION',
    'STATE',
    'STREAMS',
    'RTT',
    'SENT',
    'RECEIVED',
    'AGE',
  ])
  assert.deepEqual(tunnels[1]?.slice(0, 9), [
    'web',
    'db',
    '10.0.0.7:15443',
    'outbound',
    'open',
    '3',
    '0.4ms',
    '1.5KiB',
    '20MiB',
  ])
  assert.match(tunnels[1]?.[9] ?? '', /^\d+s$/)
  const open = await hostmesh(['connections', ...address])
  assert.deepEqual(cells(lines(open.stdout)[1]).slice(0, 10), [
    '0-17',
    'outbound',
    'web',
    'db',
    '127.0.0.1:40112',
    '240.1.2.3:5432',
    '10.0.0.7:15443',
    'open',
    '100B',
    '2.0KiB',
  ])
  assert.equal(open.stderr, '3 more are open and not listed\n')
})

test('nothing to list is said on standard error and is no failure', async () => {
  await using server = await startScripted(
    scriptedView({
      peers: () => Promise.resolve({ tunnels: [] }),
      connections: () => Promise.resolve({ connections: [], omitted: 0 }),
    }),
  )
  for (const command of ['peers', 'connections']) {
    const run = await hostmesh([command, '--addr', `unix://${server.socketPath}`])
    assert.deepEqual([run.code, run.stdout], [0, ''])
    assert.match(run.stderr, /^No (tunnels|connections) are open\n$/)
  }
})

test('certs shows how long each certificate lasts and which roots are accepted', async () => {
  await using server = await startScripted(scriptedView())
  const { stdout } = await hostmesh(['certs', '--addr', `unix://${server.socketPath}`])
  const printed = lines(stdout).map(cells)
  assert.deepEqual(printed[0], ['SERVICE', 'EXPIRES IN', 'SPIFFE ID', 'SERIAL NUMBER'])
  assert.deepEqual(printed[1]?.[0], 'web')
  assert.match(printed[1]?.[1] ?? '', /^2d2[23]h$/)
  assert.deepEqual(printed[2]?.slice(0, 2), ['old', 'expired 1h ago'])
  assert.match(printed[5]?.[0] ?? '', /^SHA256 AB:AB:AB:AB:AB:AB:AB:AB…$/)
  assert.equal(printed[5]?.[2], 'mesh.example.com')
})

test('text from other hosts cannot move the cursor or color the terminal', async () => {
  const hostile = '\u001B[2J\u202Eweb\nnext'
  const [service] = services.services
  assert.ok(service !== undefined)
  await using server = await startScripted(
    scriptedView({
      services: () => Promise.resolve({ services: [{ ...service, name: hostile }], local: [] }),
    }),
  )
  const { stdout } = await hostmesh(['services', '--addr', `unix://${server.socketPath}`], {
    FORCE_COLOR: '0',
  })
  assert.equal(lines(stdout).length, 2)
  // oxlint-disable-next-line no-control-regex -- control characters are what this looks for
  assert.doesNotMatch(stdout, /[\u0000-\u0009\u000B-\u001F\u202E]/)
})

test('without a daemon every command exits 3 and names the socket', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'nobody.sock')
  for (const command of ['status', 'services', 'peers', 'connections', 'certs']) {
    const run = await hostmesh([command, '--addr', `unix://${socketPath}`])
    assert.equal(run.code, 3, command)
    assert.equal(run.stdout, '')
    assert.match(
      run.stderr,
      /^hostmesh: Cannot reach the daemon at .*nobody\.sock: nothing listens there\n {2}hint: /,
    )
  }
})

test('wrong usage exits 2 with the reason on standard error', async () => {
  const wrong: [string[], RegExp][] = [
    [['statsu'], /^hostmesh: Unknown command 'statsu'\n\(Did you mean status\?\)/],
    [['status', '--wiat', '1s'], /^hostmesh: Unknown option '--wiat'/],
    [['status', '-o', 'xml'], /Allowed choices are table, wide, json, yaml/],
    [['status', '--wait', 'soon'], /It must be a duration such as 30s/],
    [['status', 'extra'], /^hostmesh: Too many arguments/],
    [['status', '--addr', 'http://127.0.0.1'], /It must be unix:\/\/\/path/],
    [['status', '--addr', 'unix:///etc/passwd'], /Cannot use \/etc\/passwd: it is not a socket/],
    [['status', '--addr', 'unix:///etc'], /Cannot use \/etc: it is not a socket/],
    [
      ['config', 'validate', '/nope'],
      /^hostmesh: Cannot read \/nope: no such file\n {2}hint: Correct the path/,
    ],
    [['run', '--config', '/nope'], /^hostmesh: Cannot read \/nope: no such file\n {2}hint: /m],
    [['run'], /^hostmesh: Required option '--config <file>' not specified/],
    [[], /Usage: hostmesh/],
  ]
  for (const [args, reason] of wrong) {
    const run = await hostmesh(args)
    assert.equal(run.code, 2, `${args.join(' ')}: ${run.stderr}`)
    assert.equal(run.stdout, '')
    assert.match(run.stderr, reason)
  }
})

test('help and version go to standard output with exit code 0', async () => {
  for (const args of [['--help'], ['help', 'status'], ['status', '--help'], ['--version']]) {
    const run = await hostmesh(args)
    assert.deepEqual([run.code, run.stderr], [0, ''], args.join(' '))
    assert.match(run.stdout, args[0] === '--version' ? /^\d+\.\d+\.\d+\n$/ : /^Usage: hostmesh/)
  }
  const json = await hostmesh(['version', '-o', 'json'])
  assert.match(JSON.parse(json.stdout).version, /^\d+\.\d+\.\d+$/)
})

test('status --wait returns as soon as the host is well', async () => {
  let asked = 0
  await using server = await startScripted(
    scriptedView({
      status: () => {
        asked += 1
        return Promise.resolve(asked >= 3 ? wellStatus : waitingFor('roots'))
      },
    }),
  )
  const startMs = performance.now()
  const run = await hostmesh(['status', '--wait', '50s', '--addr', `unix://${server.socketPath}`])
  assert.equal(run.code, 0)
  assert.equal(asked, 3)
  assert.ok(performance.now() - startMs < 30_000)
})

test('status --wait gives up at its deadline: 1 for a host that is not well, 3 for no daemon', async () => {
  await using server = await startScripted(
    scriptedView({
      status: () => Promise.resolve(waitingFor('the certificate of web')),
    }),
  )
  const unwell = await hostmesh([
    'status',
    '--wait',
    '600ms',
    '--addr',
    `unix://${server.socketPath}`,
  ])
  assert.equal(unwell.code, 1)
  assert.match(unwell.stdout, /Not ready: waiting for the certificate of web/)
  const nobody = await hostmesh([
    'status',
    '--wait',
    '600ms',
    '--addr',
    `unix://${server.socketPath}x`,
  ])
  assert.equal(nobody.code, 3)
})

test('status --wait finds a daemon that starts while it waits', async () => {
  await using directory = await temporaryDirectory()
  const socketPath = join(directory.path, 'admin.sock')
  const waiting = hostmesh(['status', '--wait', '50s', '--addr', `unix://${socketPath}`])
  const { startAdminServer } = await import('../../src/daemon/admin-server.ts')
  const { silentLog } = await import('../../src/lib/log.ts')
  await using _server = await startAdminServer({ socketPath, view: scriptedView(), log: silentLog })
  assert.equal((await waiting).code, 0)
})

test('a daemon of another version whose answer is something else is an error, not a crash', async () => {
  const strange: StatusDocument = JSON.parse('{"hello":"world"}')
  await using server = await startScripted(scriptedView({ status: () => Promise.resolve(strange) }))
  const run = await hostmesh(['status', '--addr', `unix://${server.socketPath}`])
  assert.equal(run.code, 1)
  assert.match(
    run.stderr,
    /^hostmesh: Cannot read the answer of the daemon at .* to \/v1\/status\n/,
  )
})

test('an error answer of the daemon is passed on with its reason', async () => {
  await using server = await startScripted(
    scriptedView({ certs: () => Promise.reject(new Error('hidden')) }),
  )
  const run = await hostmesh(['certs', '--addr', `unix://${server.socketPath}`])
  assert.equal(run.code, 1)
  assert.match(
    run.stderr,
    /Cannot get \/v1\/certs from the daemon at .*: Cannot make this document/,
  )
})

test('output into a pipe that closes early ends quietly', async () => {
  const [connection] = connections.connections
  assert.ok(connection !== undefined)
  const many = Array.from({ length: 5_000 }, (_, i) => ({ ...connection, id: `0-${i}` }))
  await using server = await startScripted(
    scriptedView({ connections: () => Promise.resolve({ connections: many, omitted: 0 }) }),
  )
  const executable = new URL('../../scripts/hostmesh', import.meta.url).pathname
  const { stdout, stderr } = await promisify(execFile)('sh', [
    '-c',
    `${executable} connections --addr unix://${server.socketPath} | head -n 1`,
  ])
  assert.match(stdout, /^ID /)
  assert.equal(stderr, '')
})

test('output that cannot be written is a failure in one sentence, and help may be cut short', async () => {
  const executable = new URL('../../scripts/hostmesh', import.meta.url).pathname
  const shell = promisify(execFile)
  await assert.rejects(shell('sh', ['-c', `${executable} config schema > /dev/full`]), (thrown) => {
    assert.ok(thrown instanceof Error && 'code' in thrown && 'stderr' in thrown)
    assert.equal(thrown.code, 1)
    assert.match(String(thrown.stderr), /^hostmesh: Cannot write to standard output: .*ENOSPC.*\n$/)
    return true
  })
  const { stdout, stderr } = await shell('sh', ['-c', `${executable} help | head -n 1`])
  assert.match(stdout, /^Usage: hostmesh /)
  assert.equal(stderr, '')
  // Nothing can be said, and the exit code says it.
  await assert.rejects(shell('sh', ['-c', `${executable} help nope 2> /dev/full`]), { code: 2 })
})

test('a user outside of the group is denied with exit code 4', async () => {
  assert.equal(process.getuid?.(), 0, 'this test changes users and must run as root')
  await using server = await startScripted(scriptedView())
  await using directory = await temporaryDirectory()
  // The other user must be able to read the program, wherever this checkout is.
  const copy = join(directory.path, 'program')
  await mkdir(copy)
  const repository = new URL('../..', import.meta.url).pathname
  for (const part of ['package.json', 'src', 'scripts'])
    await cp(join(repository, part), join(copy, part), { recursive: true })
  await mkdir(join(copy, 'node_modules'))
  await cp(join(repository, 'node_modules/commander'), join(copy, 'node_modules/commander'), {
    recursive: true,
  })
  const node = join(directory.path, 'node')
  await cp(process.execPath, node)
  for (const path of [directory.path, server.directory]) await chmod(path, 0o755)
  await chown(server.socketPath, 0, 0)
  const asNobody = (uid: number, gid: number): Promise<number> =>
    new Promise((resolve) => {
      execFile(
        node,
        [join(copy, 'src/main.ts'), 'status', '--addr', `unix://${server.socketPath}`],
        { uid, gid, cwd: '/' },
        (error) => resolve(error === null ? 0 : Number(error.code)),
      )
    })
  assert.equal(await asNobody(65_534, 65_534), 4)
  assert.equal(await asNobody(65_534, 0), 0, 'a member of the group is let in')
})

test('explain prints the verdict first, and its exit code is the verdict', async () => {
  await using server = await startScripted(
    scriptedView({
      explain: async (query) => {
        const words = new URLSearchParams(query)
        if (words.has('connection')) throw new MeshError('HM_CONNECTION_NOT_FOUND', 'It is gone')
        const [from, to] = [words.get('from') ?? '', words.get('to') ?? '']
        return explain(facts(), { kind: 'pair', from, to })
      },
    }),
  )
  const address = ['--addr', `unix://${server.socketPath}`]
  for (const [from, to, code, verdict] of [
    ['web', 'db', 0, 'ALLOWED'],
    ['web', 'vault', 1, 'DENIED'],
    ['web', 'gone', 1, 'UNREACHABLE'],
    ['web', '10.9.9.9:80', 1, 'NOT CAPTURED'],
    ['web', 'nothing', 5, 'UNKNOWN SERVICE'],
    ['nobody', 'db', 5, 'UNKNOWN CALLER'],
  ] as const) {
    const run = await hostmesh(['explain', '--from', from, '--to', to, ...address])
    assert.equal(run.code, code, `${from} -> ${to}`)
    assert.ok(run.stdout.startsWith(`${verdict}: `), run.stdout)
    assert.equal(run.stderr, '')
  }
  const gone = await hostmesh(['explain', '--connection', '0-1', ...address])
  assert.deepEqual([gone.code, gone.stdout], [5, ''])
  assert.match(gone.stderr, /It is gone/)
  for (const wrong of [
    ['--from', 'web'],
    [],
    ['--connection', '0-1', '--to', 'db'],
    ['--connection', '0-1', '--snapshot', '/dev/null'],
    ['--from', 'web', '--to', 'db:0', '--snapshot', '/nonexistent'],
  ]) {
    const run = await hostmesh(['explain', ...wrong, ...address])
    assert.equal(run.code, wrong.includes('/nonexistent') ? 1 : 2, wrong.join(' '))
    assert.equal(run.stdout, '')
  }
  const nobody = await hostmesh(['explain', '--from', 'a', '--to', 'b', '--addr', 'unix:///none'])
  assert.equal(nobody.code, 3)
})

test('what snapshot writes, explain reads without a daemon', async () => {
  await using server = await startScripted(
    scriptedView({ snapshot: () => Promise.resolve(facts()) }),
  )
  const file = join(server.directory, 'facts.json')
  const address = ['--addr', `unix://${server.socketPath}`]
  assert.equal((await hostmesh(['snapshot', '-o', file, ...address])).code, 0)
  const printed = await hostmesh(['snapshot', ...address])
  assert.deepEqual(JSON.parse(printed.stdout), JSON.parse(JSON.stringify(facts())))
  const run = await hostmesh(['explain', '--snapshot', file, '--from', 'web', '--to', 'vault'])
  assert.equal(run.code, 1)
  assert.match(run.stdout, /^DENIED: web may not reach vault/)
})

test('refused connections are a table with flag and reason, newest first', async () => {
  const [connection] = connections.connections
  assert.ok(connection !== undefined)
  const refused = [2, 1].map((number) => ({
    ...connection,
    id: `0-${number}`,
    flag: 'DENY' as const,
    code: 'HM_POLICY_DENIED',
    reason: `Denied web -> db: rule ${number}`,
    endedAt: new Date(Date.now() - 20.5 * 60_000).toISOString(),
  }))
  await using server = await startScripted(
    scriptedView({ refused: () => Promise.resolve({ refused }) }),
  )
  const run = await hostmesh(['connections', '--refused', '--addr', `unix://${server.socketPath}`])
  const [, first] = lines(run.stdout).map(cells)
  assert.deepEqual(first, [
    '0-2',
    'outbound',
    'web',
    'db',
    '127.0.0.1:40112',
    '240.1.2.3:5432',
    '20m',
    'DENY',
    'Denied web -> db: rule 2',
  ])
})
