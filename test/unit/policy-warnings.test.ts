/**
 * Whoever lets strangers in by default is told, and nobody else.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { policyWarnings } from '../../src/controlplane/discovery/policy-warnings.ts'
import type { DefaultPolicy } from '../../src/model/intention.ts'
import { emptySnapshot, type Snapshot } from '../../src/model/snapshot.ts'
import { intention } from '../harness/builders.ts'

function snapshot(defaultPolicy: DefaultPolicy, sources: readonly string[], count = 1): Snapshot {
  const names = Array.from({ length: count }, (_, index) => `db${index}`)
  return {
    ...emptySnapshot,
    policies: new Map(
      names.map((destination) => {
        const intentions = sources.map((source) => intention(source, destination, 'deny'))
        return [destination, { destination, intentions, defaultPolicy }]
      }),
    ),
  }
}

test('a default of allow is told with the services that it opens, five of them by name', () => {
  assert.match(policyWarnings(snapshot('allow', ['web']))[0] ?? '', /may call db0; .*: deny/)
  assert.match(policyWarnings(snapshot('allow', [], 7))[0] ?? '', /db0, .*, db4 and 2 more;/)
})

test('a default that is deny, or that no caller ever gets to, is nothing to tell', () => {
  assert.deepEqual(policyWarnings(snapshot('deny', [])), [])
  assert.deepEqual(policyWarnings(snapshot('allow', ['web', '*'])), [])
  assert.deepEqual(policyWarnings(emptySnapshot), [])
})
