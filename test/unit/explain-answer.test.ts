/**
 * What destinations said, lately or just now, in the verdict of an explanation; and what is wrong with the host.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { withoutProbe } from '../../src/daemon/explain/answer.ts'
import { explain } from '../../src/daemon/explain/explain.ts'
import type { Explanation } from '../../src/model/explanation.ts'
import type { HostFacts, OutcomeFacts, ProbeFacts } from '../../src/model/facts.ts'
import { meshService } from '../harness/builders.ts'
import { facts, NOW } from './explain-fixtures.ts'

function asked(parts: Partial<HostFacts>): Explanation {
  return explain(facts(parts), { kind: 'pair', from: 'web', to: 'db' })
}

function ago(seconds: number): string {
  return new Date(Date.parse(NOW) - seconds * 1_000).toISOString()
}

function outcome(parts: Partial<OutcomeFacts>): OutcomeFacts {
  return {
    worker: 0,
    direction: 'outbound',
    source: 'web',
    target: 'host-2/db-2',
    okAt: null,
    failure: null,
    ...parts,
  }
}

function failure(seconds: number, flag: 'DENY' | 'UF' | 'UT'): OutcomeFacts['failure'] {
  return { at: ago(seconds), flag, code: 'HM_TUNNEL_STREAM_RESET', reason: `it said ${flag}` }
}

function probe(endpoint: string, parts: Partial<ProbeFacts>): ProbeFacts {
  return {
    endpoint,
    kind: 'answered',
    verdict: 'delivered',
    application: 'listens',
    flag: null,
    code: null,
    reason: '',
    tookMs: 1.5,
    ...parts,
  }
}

const instances = asked({}).endpoints.filter(({ excluded }) => excluded === null)
const everyone = instances.map(({ endpoint }) => endpoint)

test('the fixture has an instance to ask', () => {
  assert.ok(everyone.includes('host-2/db-2'), everyone.join())
})

describe('the last connections', () => {
  test('a denial of late is the verdict, though the catalog allows it', () => {
    const said = asked({ outcomes: [outcome({ failure: failure(20, 'DENY') })] })
    assert.equal(said.verdict, 'denied')
    assert.match(said.summary, /host-2\/db-2 ended with DENY 20 s ago: it said DENY/)
    assert.match(said.next.join(), /--probe/)
  })

  test('a success after it, in whatever worker, takes it back', () => {
    const said = asked({
      outcomes: everyone.flatMap((target) => [
        outcome({ target, failure: failure(20, 'DENY') }),
        outcome({ target, worker: 1, okAt: ago(10) }),
      ]),
    })
    assert.equal(said.verdict, 'allowed')
    assert.match(said.summary, /it did lately/)
  })

  test('what is older than five minutes says nothing', () => {
    const said = asked({ outcomes: [outcome({ failure: failure(301, 'DENY') })] })
    assert.equal(said.verdict, 'allowed')
    assert.ok(said.stations.every(({ name }) => name !== 'answer'))
  })

  test('an instance that could not be reached ends the path only when no other remains', () => {
    const all = asked({
      outcomes: everyone.map((target) => outcome({ target, failure: failure(5, 'UF') })),
    })
    assert.equal(all.verdict, 'unreachable')
    if (everyone.length === 1) return
    const one = asked({ outcomes: [outcome({ failure: failure(5, 'UF') })] })
    assert.equal(one.verdict, 'allowed')
  })
})

describe('a probe', () => {
  const all = (parts: Partial<ProbeFacts>): readonly ProbeFacts[] =>
    everyone.map((endpoint) => probe(endpoint, parts))

  test('says more than what connections met before', () => {
    const said = asked({
      outcomes: everyone.map((target) => outcome({ target, failure: failure(5, 'DENY') })),
      probes: all({}),
    })
    assert.equal(said.verdict, 'allowed')
    assert.match(said.summary, /says so now/)
  })

  test('overrules the rules of the catalog in both directions', () => {
    const denied = facts({}).policies.map((policy) => ({
      ...policy,
      intentions: [],
      defaultPolicy: 'deny' as const,
    }))
    assert.equal(asked({ policies: denied }).verdict, 'denied')
    assert.equal(asked({ policies: denied, probes: all({}) }).verdict, 'allowed')
    assert.equal(asked({ probes: all({ verdict: 'denied' }) }).verdict, 'denied')
  })

  test('makes an undecided pair decided', () => {
    assert.equal(asked({ policies: [] }).verdict, 'undecided')
    assert.equal(asked({ policies: [], probes: all({}) }).verdict, 'allowed')
  })

  test('without an answer is a failure, and of a sidecar no proof', () => {
    assert.equal(
      asked({ probes: all({ kind: 'failed', verdict: null, flag: 'UF', reason: 'refused' }) })
        .verdict,
      'unreachable',
    )
    const sidecar = asked({ probes: all({ kind: 'handshake', verdict: null }) })
    assert.equal(sidecar.verdict, 'allowed')
    assert.match(sidecar.summary, /--probe asks/)
    const answer = sidecar.stations.find(({ name }) => name === 'answer')
    assert.equal(answer?.mark, 'warning')
    assert.match(answer.summary, /no more can be asked/)
  })
})

describe('the host itself', () => {
  const problem = {
    code: 'HM_CA_HOST_REFUSED',
    message: 'The CA does not know this certificate: it was revoked',
    hint: 'Enroll again',
    blocks: false,
    since: NOW,
  }

  test('a draining host takes no connection', () => {
    assert.equal(asked({ draining: true, ready: false }).verdict, 'unreachable')
  })

  test('a host whose CA has revoked it is rejected by the other hosts', () => {
    const said = asked({ problems: [problem] })
    assert.equal(said.verdict, 'unreachable')
    assert.match(said.summary, /revoked/)
  })

  test('a problem that does not stop the connection is told', () => {
    const said = asked({ problems: [{ ...problem, code: 'HM_CONSUL_UNREACHABLE' }] })
    assert.equal(said.verdict, 'allowed')
    assert.equal(said.stations.find(({ name }) => name === 'host')?.mark, 'warning')
  })
})

test('a probe that asks nobody says so, and why nobody would be picked', () => {
  const { services } = facts({})
  const dead = services.map(({ name, virtualIps, clusters: [{ endpoints }] }) =>
    meshService(name, {
      virtualIps,
      endpoints: endpoints.map((each) => ({ ...each, health: 'critical' })),
    }),
  )
  const explanation = asked({ services: dead })
  assert.equal(explanation.verdict, 'unreachable')
  assert.match(explanation.next.join(), /Which health check fails.*hostmesh services db.*on host-/)
  const last = withoutProbe(explanation).stations.at(-1)
  assert.equal(last?.name, 'answer')
  assert.match(last.summary, /^Nobody was asked/)
})
