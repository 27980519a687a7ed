/**
 * `hostmesh capture clear --on-stop`: what the unit does when the daemon has ended, whichever way.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, beforeEach, test } from 'node:test'

import { hostmesh } from '../harness/daemon.ts'
import { type Namespace, Network } from '../harness/network.ts'
import { type CommandResult, runCommand } from '../harness/owned-process.ts'

const folder = mkdtempSync(join(tmpdir(), 'hmt-on-stop-'))
let network: Network
let host: Namespace
let rulesBefore: string

before(async () => {
  network = await Network.create(['a'])
  host = network.host('a')
  rulesBefore = await host.rules()
})

beforeEach(async () => {
  const applied = await capture('apply', '--config', file('{ mode: on, daemonUser: 2900 }'))
  assert.equal(applied.code, 0, applied.stderr)
})

after(async () => {
  await network[Symbol.asyncDispose]()
  rmSync(folder, { recursive: true })
})

/** Writes a configuration with this capture section and returns its path. */
function file(section: string): string {
  const path = join(folder, 'hostmesh.yaml')
  const text = `
catalog: { kind: file, path: catalog.yaml }
certificates: { kind: files, directory: certs }
capture: ${section}
services: [{ name: web, identity: { user: 2001 } }]
`
  writeFileSync(path, text, { mode: 0o600 })
  return path
}

function capture(...args: string[]): Promise<CommandResult> {
  return runCommand(host.inside([hostmesh, 'capture', ...args]))
}

async function areThere(): Promise<boolean> {
  const rules = await host.rules()
  if (rules !== rulesBefore) assert.match(rules, /HOSTMESH/)
  return rules !== rulesBefore
}

for (const [section, stay] of [
  ['{ mode: on }', false],
  ['{ mode: on, onStop: open }', false],
  ['{ mode: on, onStop: closed }', true],
  ['{ mode: off, onStop: closed }', false],
] as const)
  test(`with capture ${section} the rules ${stay ? 'stay' : 'go'}`, async () => {
    const { code, stdout, stderr } = await capture('clear', '--on-stop', '--config', file(section))
    assert.equal(code, 0, stderr)
    assert.match(stdout, stay ? /kept/ : /removed/)
    assert.equal(await areThere(), stay)
  })

test('with a configuration that cannot be read the rules stay, and the exit code says why', async () => {
  const path = file('{ mode: on, onStop: ajar }')
  const broken = await capture('clear', '--on-stop', '--config', path)
  assert.equal(broken.code, 2)
  assert.match(broken.stderr, /rules, if any, are kept/)
  assert.match(broken.stderr, /capture\.onStop/)
  assert.equal(await areThere(), true)
  const missing = await capture('clear', '--on-stop', '--config', join(folder, 'none.yaml'))
  assert.equal(missing.code, 2)
  assert.equal(await areThere(), true)
})

test('one of the two options without the other is a usage error and removes nothing', async () => {
  for (const args of [['--on-stop'], ['--config', file('{ mode: on }')]]) {
    const { code, stderr } = await capture('clear', ...args)
    assert.equal(code, 2, args.join(' '))
    assert.match(stderr, /go together/)
    assert.equal(await areThere(), true)
  }
})

test('a plain clear removes the rules that closed keeps', async () => {
  await capture('clear', '--on-stop', '--config', file('{ mode: on, onStop: closed }'))
  assert.equal(await areThere(), true)
  assert.equal((await capture('clear')).code, 0)
  assert.equal(await areThere(), false)
})
