/** The rules that keep the daemon's ports, as text. What they do in a kernel: test/mesh/ports-kept.test.ts. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type GuardedPort, renderPortTable } from '../../src/controlplane/capture/port-rules.ts'

const tcp = (ip: string, port: number, movedTo?: number): GuardedPort => ({
  kind: 'tcp',
  address: { ip, port },
  movedTo,
})

function linesOf(chain: string, ports: readonly GuardedPort[]): readonly string[] {
  const text = renderPortTable(ports)
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
  assert.doesNotMatch(renderPortTable([tcp('::', 1)]), /chain output/)
})
