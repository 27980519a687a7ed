/**
 * Capture by iptables-nft on a real kernel, and what a host without tools or rights is told.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { createCapture } from '../../src/controlplane/capture/capture.ts'
import { createCommandRunner, type RunCommand } from '../../src/controlplane/capture/command.ts'
import { iptablesRules } from '../../src/controlplane/capture/iptables-rules.ts'
import { renderRestore } from '../../src/controlplane/capture/saved-rules.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { Network } from '../harness/network.ts'
import { plan, testRules } from './iptables-rules.ts'

const backend = 'iptables'

testRules('nft')

test('a host without the tools is told which package to install, and clear has nothing to do there', async () => {
  const run = createCommandRunner('/nonexistent')
  const capture = createCapture({ run, backend })
  await assert.rejects(
    capture.apply(plan),
    (error) =>
      error instanceof MeshError &&
      error.code === 'HM_CAPTURE_TOOL_MISSING' &&
      /iptables-save/.test(error.message) &&
      /package iptables/.test(error.hint ?? ''),
  )
  const { removed, notes } = await capture.clear()
  assert.equal(removed, false)
  assert.equal(notes.length > 0, true)
})

test('a process without the right to change rules is told which right it lacks', async () => {
  await using network = await Network.create(['x'])
  const inside = createCommandRunner()
  const run: RunCommand = (tool, args, input) => {
    const [command = '', ...rest] = network
      .host('x')
      .inside(['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups', tool, ...args])
    return inside(command, rest, input)
  }
  for (const operation of ['apply', 'clear'] as const)
    await assert.rejects(
      createCapture({ run, backend })[operation](plan),
      (error) =>
        error instanceof MeshError &&
        error.code === 'HM_CAPTURE_PERMISSION_DENIED' &&
        /CAP_NET_ADMIN/.test(error.hint ?? ''),
    )
})

test('a text for iptables-restore that names a missing set fails as a whole', async () => {
  await using network = await Network.create(['x'])
  const host = network.host('x')
  const runner = createCommandRunner()
  const run: RunCommand = (tool, args, input) => {
    const [command = '', ...rest] = host.inside([tool, ...args])
    return runner(command, rest, input)
  }
  const text = renderRestore(iptablesRules(plan, 'v4'), [])
  const { status } = await run('iptables-restore', ['--noflush'], text)
  assert.notEqual(status, 0)
  assert.doesNotMatch((await run('iptables-save', ['-t', 'nat'])).stdout, /HOSTMESH_/)
})
