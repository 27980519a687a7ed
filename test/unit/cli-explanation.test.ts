/**
 * How an explanation looks, to the letter.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { renderExplanation } from '../../src/cli/render/explanation.ts'
import { explain } from '../../src/daemon/explain/explain.ts'
import { facts, NOW, policy } from './explain-fixtures.ts'

const soon = Date.parse(NOW) + 3_000

test('an allowed pair', () => {
  const text = renderExplanation(explain(facts(), { kind: 'pair', from: 'web', to: 'db' }), soon)
  assert.equal(
    text,
    `ALLOWED: web may reach db, through a tunnel; whether its host and its application agree, --probe asks

✓ caller      web, recognized by cgroup system.slice/web.service, capture port 15100
✓ capture     240.0.0.1:5432 is a virtual address: diverted to capture port 15100
                output: to a mesh address, by cgroup system.slice/web.service: divert to port 15100
✓ route       240.0.0.1:5432 is service db, by its virtual address, at any port
                Protocol tcp, datacenter dc1, connect timeout 5000 ms
✓ endpoint    host-2/db-2: the only candidate
                host-2/db-2 10.0.0.2:15443, passing, weight 1, cost 3.25, 3 in flight
                host-3/db-3 10.0.0.3:15443, critical, weight 1, not tried yet: left out, its health is critical
✓ certificate It shows spiffe://mesh.example/ns/default/dc/dc1/svc/web
                Serial number 0A, valid until 2026-03-02T12:00:00.000Z
                Expects spiffe://mesh.example/ns/default/dc/dc1/svc/db, server name db.default.dc1.internal.mesh.example
                Trust domain mesh.example, roots accepted: 1
✓ tunnel      Open to 10.0.0.2:15443
                spiffe://mesh.example/ns/default/dc/dc1/svc/db, open since 2026-03-01T11:59:00.000Z, 3 streams, round trip 0.4 ms
✓ policy      Allowed: intention web -> db (precedence 9) says allow
                Decided at the destination (host-2); these are the rules that the catalog has for it
                Would match too, and comes later: * -> db deny (precedence 8)
- delivery    By host-2, to its own instance

As host-1 saw it 3s ago (${NOW}); the last answer of the catalog was 2s old`,
  )
})

test('a denied pair says what to do', () => {
  const view = facts({ policies: [policy('cache', 'snapshot', [])] })
  const text = renderExplanation(explain(view, { kind: 'pair', from: 'web', to: 'cache' }), soon)
  const lines = text.split('\n')
  assert.equal(
    lines[0],
    'DENIED: web may not reach cache: no intention matches, the default policy says deny',
  )
  assert.ok(
    lines.includes('✗ policy      Denied: no intention matches, the default policy says deny'),
  )
  assert.deepEqual(lines.slice(lines.indexOf('Next:'), -2), [
    'Next:',
    '  To allow it: consul intention create -allow web cache',
  ])
})

test('text of other hosts cannot steer the terminal', () => {
  const hostile = facts({ node: 'evil\u001B[2J' })
  const text = renderExplanation(explain(hostile, { kind: 'pair', from: 'x', to: 'y' }), soon)
  assert.ok(!text.includes('\u001B[2J'))
})
