/**
 * `hostmesh ping` against a scripted daemon: what each part of the time is, and the exit codes.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { explain } from '../../src/daemon/explain/explain.ts'
import type { Explanation } from '../../src/model/explanation.ts'
import type { ProbeFacts } from '../../src/model/facts.ts'
import { facts } from '../unit/explain-fixtures.ts'
import { hostmesh, scriptedView, startScripted } from './admin-fixtures.ts'

const delivered: ProbeFacts = {
  endpoint: 'host-b/db-1',
  kind: 'answered',
  verdict: 'delivered',
  application: 'listens',
  flag: null,
  code: null,
  reason: '',
  tookMs: 6.1,
  tunnel: 'new',
  dialMs: 4.9,
  roundTripMs: 0.4,
  answerMs: 1,
}
const denied: ProbeFacts = {
  ...delivered,
  endpoint: 'host-c/db-2',
  verdict: 'denied',
  application: 'unknown',
  tunnel: 'open',
  dialMs: null,
  tookMs: 1.2,
  roundTripMs: 0.5,
  answerMs: 1.2,
}

function answering(probes: readonly ProbeFacts[], asked: string[] = []) {
  const explained: Explanation = {
    ...explain(facts(), { kind: 'pair', from: 'web', to: 'db' }),
    verdict: 'allowed',
    probes,
  }
  return scriptedView({
    explain: (query) => {
      asked.push(query)
      return Promise.resolve(explained)
    },
  })
}

test('each instance has a line with the parts of the time; one that refuses is exit code 1', async () => {
  const asked: string[] = []
  await using server = await startScripted(answering([delivered, denied], asked))
  const { code, stdout, stderr } = await hostmesh(['ping', 'db'], {
    HOSTMESH_ADDR: `unix://${server.socketPath}`,
  })
  assert.equal(stderr, '')
  assert.equal(code, 1)
  assert.deepEqual(asked, ['from=web&to=db&probe=1'], 'the only service of the host calls')
  const lines = stdout.split('\n').map((line) => line.split(/ {2,}/))
  assert.deepEqual(lines.slice(0, 3), [
    ['ROUND', 'INSTANCE', 'TOTAL', 'TUNNEL', 'HANDSHAKE', 'ROUND TRIP', 'DECISION', 'ANSWER'],
    [
      '1',
      'host-b/db-1',
      '6.1ms',
      'new',
      '4.9ms',
      '0.4ms',
      '0.6ms',
      'would be delivered, its application listens',
    ],
    ['1', 'host-c/db-2', '1.2ms', 'open', '-', '0.5ms', '0.7ms', 'denied'],
  ])
})

test('all instances that would deliver are exit code 0, and --count asks again', async () => {
  const asked: string[] = []
  await using server = await startScripted(answering([delivered], asked))
  const { code, stdout } = await hostmesh(
    ['ping', 'db', '--from', 'web', '--count', '2', '-o', 'json'],
    { HOSTMESH_ADDR: `unix://${server.socketPath}` },
  )
  assert.equal(code, 0)
  assert.equal(asked.length, 2)
  const document: { delivered: boolean; replies: { round: number }[] } = JSON.parse(stdout)
  assert.equal(document.delivered, true)
  assert.deepEqual(
    document.replies.map(({ round }) => round),
    [1, 2],
  )
})

test('without an instance to ask it fails and says why', async () => {
  await using server = await startScripted(answering([]))
  const { code, stdout, stderr } = await hostmesh(['ping', 'db'], {
    HOSTMESH_ADDR: `unix://${server.socketPath}`,
  })
  assert.equal(code, 1)
  assert.equal(stdout, '')
  assert.notEqual(stderr, '')
})
