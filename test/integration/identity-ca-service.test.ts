/**
 * The commands of the CA's operator as processes: with a server, without one, and after one was killed.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { tryLockFile } from '../../src/lib/file-lock.ts'
import { parseJoinToken } from '../../src/model/join-token.ts'
import { hostmesh } from '../harness/daemon.ts'
import { eventually } from '../harness/eventually.ts'
import { type CommandResult, OwnedProcess, runCommand } from '../harness/owned-process.ts'

/** A CA in a directory of its own. */
class Fixture implements AsyncDisposable {
  readonly directory = mkdtempSync(join(tmpdir(), 'hostmesh-ca-service-'))
  private readonly processes: OwnedProcess[] = []

  static async create(): Promise<Fixture> {
    const fixture = new Fixture()
    const made = await fixture.ca('init', '--trust-domain', 'mesh.test')
    assert.equal(made.code, 0, made.stderr)
    return fixture
  }

  ca(command: string, ...args: string[]): Promise<CommandResult> {
    const words = [...command.split(' '), '--directory', this.directory, ...args]
    return runCommand([hostmesh, 'ca', ...words])
  }

  /** Starts to serve at a free port of loopback. */
  async serve(): Promise<OwnedProcess> {
    const options = ['--directory', this.directory, '--listen', '127.0.0.1:0']
    const server = await OwnedProcess.start([hostmesh, 'ca', 'serve', ...options], {
      name: 'hostmesh ca serve',
    })
    this.processes.push(server)
    await eventually(() => assert.match(server.output, /Serving the certificate authority/), {
      withinMs: 20_000,
    })
    return server
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const one of this.processes) await one[Symbol.asyncDispose]()
    rmSync(this.directory, { recursive: true })
  }
}

test('commands work without a server, several at once', async () => {
  await using fixture = await Fixture.create()
  const nowhere = await fixture.ca('token', '--host', 'a')
  assert.equal(nowhere.code, 1)
  assert.match(
    nowhere.stderr,
    /nobody knows yet where this CA is reached\n {2}hint: Give --address/,
  )
  const made = await Promise.all(
    ['a', 'b', 'c'].map((host) =>
      fixture.ca('token', '--host', host, '--address', 'ca.test:15444'),
    ),
  )
  for (const { code, stdout, stderr } of made) {
    assert.equal(code, 0, stderr)
    assert.equal(parseJoinToken(stdout, 'the output').address, 'ca.test:15444')
  }
  const status = await fixture.ca('status', '-o', 'json')
  assert.equal(JSON.parse(status.stdout).openTokens.length, 3)
  assert.ok(!status.stdout.includes(parseJoinToken(made[0]?.stdout ?? '', 'it').secret))
})

test('a command waits for another one that works on the CA', async () => {
  await using fixture = await Fixture.create()
  // A CA is used before it is locked.
  assert.equal((await fixture.ca('status')).code, 0)
  const lock = tryLockFile(join(fixture.directory, 'lock'))
  assert.ok(lock !== undefined)
  const made = fixture.ca('token', '--host', 'a', '--address', 'ca.test:15444')
  // Longer than a command takes to find the directory in use.
  await delay(2_000)
  lock[Symbol.dispose]()
  const { code, stdout, stderr } = await made
  assert.equal(code, 0, stderr)
  assert.equal(parseJoinToken(stdout, 'the output').address, 'ca.test:15444')
})

test('a server does what commands ask, keeps a second one out, and one that was killed leaves nothing in the way', async () => {
  await using fixture = await Fixture.create()
  const server = await fixture.serve()
  assert.equal(statSync(join(fixture.directory, 'admin.sock')).mode & 0o777, 0o600)
  const second = await fixture.ca('serve', '--listen', '127.0.0.1:0')
  assert.equal(second.code, 1)
  assert.match(second.stderr, /it is in use/)
  const token = await fixture.ca('token', '--host', 'a')
  assert.match(parseJoinToken(token.stdout, 'it').address, /^127\.0\.0\.1:\d+$/)
  assert.match(server.output, /Join token made/)
  assert.ok(!server.output.includes(token.stdout.trim()))

  await server.kill()
  const offline = await fixture.ca('status', '-o', 'json')
  assert.equal(JSON.parse(offline.stdout).openTokens.length, 1, offline.stderr)
  const again = await fixture.serve()
  assert.deepEqual(await again.stop(), { code: 0, signal: null })
})

test('a rotation of a CA without hosts ends in two commands, and certificates are issued by the new root', async () => {
  await using fixture = await Fixture.create()
  const before = readFileSync(join(fixture.directory, 'ca.pem'), 'utf8')
  assert.match(
    (await fixture.ca('rotate start')).stdout,
    /All hosts are done: hostmesh ca rotate finish/,
  )
  assert.equal((await fixture.ca('rotate finish')).code, 0)
  const none = await fixture.ca('rotate abort')
  assert.equal(none.code, 1)
  assert.match(none.stderr, /no rotation is going on/)
  const out = join(fixture.directory, 'out')
  const issued = await fixture.ca('issue', '--service', 'web', '--out', out)
  assert.equal(issued.code, 0, issued.stderr)
  assert.notEqual(readFileSync(join(out, 'roots.pem'), 'utf8'), before)
  const again = await fixture.ca('init', '--trust-domain', 'mesh.test')
  assert.match(again.stderr, /it holds one already/)
})

test('what makes no sense is a wrong use, said in a sentence', async () => {
  await using fixture = await Fixture.create()
  const cases: [string, string[], RegExp, number][] = [
    ['revoke', [], /Cannot revoke: say what/, 2],
    ['revoke', ['--host', 'a'], /no certificate that has not expired is like that/, 1],
    ['token', ['--host', '../a', '--address', 'x:1'], /it is no host name/, 2],
    ['token', ['--host', 'a', '--address', 'x'], /with the address "x"/, 1],
    ['token', ['--host', 'a', '--ttl', '31d', '--address', 'x:1'], /longer than 30 days/, 1],
    ['serve', ['--listen', 'localhost'], /Cannot use "localhost"/, 2],
    ['serve', ['--leaf-lifetime', '1ms'], /Must be a duration/, 2],
    ['rotate finish', [], /no rotation is going on/, 1],
  ]
  for (const [command, args, says, code] of cases) {
    const result = await fixture.ca(command, ...args)
    assert.match(result.stderr, says)
    assert.equal(result.code, code, result.stderr)
  }
})
