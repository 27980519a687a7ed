/** The rules that keep the daemon's ports, as text. What they do in a kernel: test/mesh/ports-kept.test.ts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  type GuardedPort,
  type PlainInbound,
  renderPortTable,
} from '../../src/controlplane/capture/port-rules.ts'

const tcp = (ip: string, port: number, movedTo?: number): GuardedPort => ({
  kind: 'tcp',
  address: { ip, port },
  movedTo,
})

const NONE: PlainInbound = { targets: [], refuses: false }

function linesOf(
  chain: string,
  ports: readonly GuardedPort[],
  plainInbound = NONE,
): readonly string[] {
  const text = renderPortTable({ ports, plainInbound })
  const body = new RegExp(`  chain ${chain} \\{\\n([^}]*(?:\\{[^}]*\\}[^}]*)*?)  \\}\\n`).exec(text)
  assert.ok(body, text)
  return (body[1] ?? '').trim().split(/\n\s+/)
}

test('many ports are a few sets; a loopback address stands for both', () => {
  assert.deepEqual(
    linesOf('connection', [tcp('127.0.0.1', 7001), tcp('127.0.0.1', 7002), tcp('::', 15443)]),
    [
      'ip daddr . tcp dport { 127.0.0.1 . 7001, 127.0.0.1 . 7002 } goto ours',
      'ip6 daddr . tcp dport { ::1 . 7001, ::1 . 7002 } goto ours',
      'fib daddr type local tcp dport { 15443 } goto ours',
    ],
  )
})

test('an address of its own is no other; every IPv4 address is none of IPv6', () => {
  assert.deepEqual(linesOf('connection', [tcp('10.0.0.1', 15443), tcp('0.0.0.0', 9100)]), [
    'ip daddr . tcp dport { 10.0.0.1 . 15443 } goto ours',
    'meta nfproto ipv4 fib daddr type local tcp dport { 9100 } goto ours',
  ])
})

test('what has moved is led there before anybody looks who listens', () => {
  assert.deepEqual(linesOf('connection', [tcp('::', 15443, 40001)]), [
    'meta nfproto ipv4 fib daddr type local tcp dport 15443 tproxy ip to :40001 accept',
    'meta nfproto ipv6 fib daddr type local tcp dport 15443 tproxy ip6 to :40001 accept',
    'fib daddr type local tcp dport { 15443 } goto ours',
  ])
})

test('answers to datagrams come from the port that was asked', () => {
  const ports: GuardedPort[] = [
    { kind: 'udp', address: { ip: '127.0.0.1', port: 15053 }, movedTo: 40_002 },
  ]
  assert.deepEqual(linesOf('output', ports).slice(1), [
    'ip saddr 127.0.0.1 udp sport 40002 udp sport set 15053',
  ])
  assert.doesNotMatch(
    renderPortTable({ ports: [tcp('::', 1)], plainInbound: NONE }),
    /chain output/,
  )
})

test('who comes around the mesh: at any address of a service on loopback, at its own of another', () => {
  const targets = [
    { ip: '127.0.0.1', port: 8080 },
    { ip: '::1', port: 8081 },
    { ip: '10.0.0.1', port: 5432 },
  ]
  assert.deepEqual(linesOf('connection', [], { targets, refuses: false }), [
    'iif != "lo" fib daddr type local tcp dport { 8080, 8081 } goto plain',
    'iif != "lo" ip daddr 10.0.0.1 fib daddr type local tcp dport 5432 goto plain',
  ])
  const counts = linesOf('plain', [], { targets, refuses: false }).at(-1)
  assert.equal(counts, 'counter name plain_inbound')
  const refuses = linesOf('plain', [], { targets, refuses: true }).at(-1)
  assert.equal(refuses, 'counter name plain_inbound meta l4proto tcp reject with tcp reset')
})
