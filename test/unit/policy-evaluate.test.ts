/**
 * May this source reach this destination: Consul's intentions for TCP.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import { evaluate } from '../../src/model/evaluate.ts'
import { type Intention, precedenceOf } from '../../src/model/intention.ts'
import type { ServicePolicy } from '../../src/model/snapshot.ts'
import { intention as rule } from '../harness/builders.ts'

/** As compile() sorts them. */
function policy(defaultPolicy: 'allow' | 'deny', ...rules: readonly Intention[]): ServicePolicy {
  return {
    destination: 'db',
    defaultPolicy,
    intentions: rules.toSorted((a, b) => b.precedence - a.precedence),
  }
}

test('without a policy everything is denied', () => {
  assert.equal(evaluate('web', undefined).allow, false)
})

test('without a matching intention the default decides, and says so', () => {
  assert.deepEqual(evaluate('web', policy('allow')), {
    allow: true,
    rule: undefined,
    reason: 'no intention matches, the default policy says allow',
  })
  assert.equal(evaluate('web', policy('deny', rule('api', 'db', 'allow'))).allow, false)
})

describe('the more exact intention decides', () => {
  const pairs = [
    ['web', 'db'],
    ['*', 'db'],
    ['web', '*'],
    ['*', '*'],
  ] as const
  for (const [i, [source, destination]] of pairs.entries())
    for (const action of ['allow', 'deny'] as const)
      test(`${source} -> ${destination} ${action} over all that are less exact`, () => {
        const opposite = action === 'allow' ? 'deny' : 'allow'
        const rules = pairs
          .slice(i)
          .map(([from, to], rank) => rule(from, to, rank === 0 ? action : opposite))
        const decision = evaluate('web', policy(opposite, ...rules.toReversed()))
        assert.equal(decision.allow, action === 'allow')
        assert.equal(
          decision.reason,
          `intention ${source} -> ${destination} (precedence ${precedenceOf(source, destination)}) says ${action}`,
        )
      })
})

test('an intention without an action that TCP can apply denies, whatever else matches', () => {
  const decision = evaluate(
    'web',
    policy('allow', rule('web', 'db', undefined), rule('*', 'db', 'allow')),
  )
  assert.equal(decision.allow, false)
  assert.match(decision.reason, /HTTP request/)
})

test('names are compared whole and exactly', () => {
  for (const other of ['We', 'WEB', 'web2', 'web*', 'w*', '**', 'web ', '', 'wéb', 'web\0'])
    assert.equal(evaluate('web', policy('deny', rule(other, 'db', 'allow'))).allow, false, other)
  assert.equal(evaluate('*', policy('deny', rule('web', 'db', 'allow'))).allow, false)
})

test('an intention for another destination never matches', () => {
  assert.equal(evaluate('web', policy('deny', rule('web', 'cache', 'allow'))).allow, false)
})

test('the decision is that of the first match in order of precedence, for any set of rules', () => {
  const name = fc.constantFrom('*', 'web', 'api', 'db')
  fc.assert(
    fc.property(
      fc.array(fc.tuple(name, name, fc.constantFrom('allow' as const, 'deny' as const)), {
        maxLength: 8,
      }),
      fc.constantFrom('web', 'api', 'x'),
      fc.boolean(),
      (parts, source, allows) => {
        const rules = parts.map(([from, to, action]) => rule(from, to, action))
        const sorted = policy(allows ? 'allow' : 'deny', ...rules)
        const best = Math.max(
          -1,
          ...rules
            .filter((r) => ['*', source].includes(r.source) && ['*', 'db'].includes(r.destination))
            .map(({ precedence }) => precedence),
        )
        const first = sorted.intentions.find(
          (r) =>
            r.precedence === best &&
            ['*', source].includes(r.source) &&
            ['*', 'db'].includes(r.destination),
        )
        const expected = first === undefined ? allows : first.action === 'allow'
        assert.equal(evaluate(source, sorted).allow, expected)
      },
    ),
    { seed: 4, numRuns: 500 },
  )
})
