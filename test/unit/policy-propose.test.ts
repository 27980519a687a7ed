/**
 * `hostmesh policy propose`: exact pairs of what was seen, in every form, judged by the code that hosts use.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { proposalText } from '../../src/cli/policy.ts'
import { readIntentions } from '../../src/daemon/intention-file.ts'
import { propose } from '../../src/daemon/policy/propose.ts'
import { evaluate } from '../../src/model/evaluate.ts'
import { calm, edge } from '../integration/fleet-fixtures.ts'

const seen = [
  edge('web', 'db'),
  edge('batch', 'cache'),
  edge('web', 'cache', { policy: null }),
  edge('0123', 'db'),
  edge('probe', 'db', { policy: { allow: false, rule: null, reason: 'default\n- {Name: evil}' } }),
  edge('scan', 'db', { policy: null, traffic: { ...calm, active: 0, closed: { DENY: 3 } } }),
  edge('quiet', 'db', { policy: null, traffic: { ...calm, active: 0, closed: {} } }),
  edge('other', 'db'),
  edge('x\n- {Name: evil}', 'db'),
]

test('what is proposed allows all that has passed and nothing else, in every form', () => {
  const proposal = propose(seen)
  for (const form of ['yaml', 'json', 'catalog'] as const) {
    const set = readIntentions(proposalText(proposal, form), {
      fileName: form,
      defaultPolicy: 'deny',
      destinations: ['db', 'cache', 'new'],
    })
    const names = ['0123', 'batch', 'db', 'evil', 'other', 'probe', 'quiet', 'scan', 'web', '*']
    const allowed = ['cache', 'db', 'new'].flatMap((destination) =>
      names
        .filter((name) => evaluate(name, set.policyByDestination.get(destination)).allow)
        .map((name) => `${name} -> ${destination}`),
    )
    assert.deepEqual(allowed, ['batch -> cache', 'web -> cache', '0123 -> db', 'web -> db'], form)
  }
})

test('commands are one for each pair, denied pairs are comments, and the order is always the same', () => {
  const text = proposalText(propose(seen), 'commands')
  assert.equal(proposalText(propose(seen.toReversed()), 'commands'), text)
  const lines = text.split('\n')
  assert.deepEqual(
    lines.filter((line) => !line.startsWith('#')),
    [
      'consul intention create -allow batch cache',
      'consul intention create -allow web cache',
      'consul intention create -allow 0123 db',
      'consul intention create -allow web db',
    ],
  )
  assert.equal(lines.filter((line) => line.startsWith('# Denied today')).length, 2)
})

test('what is left out is said, and nothing seen proposes nothing', () => {
  assert.equal(propose(seen).notes.length, 3)
  assert.deepEqual(propose([]), { allowed: [], denied: [], notes: [] })
  assert.equal(proposalText(propose([]), 'json'), '[]')
})
