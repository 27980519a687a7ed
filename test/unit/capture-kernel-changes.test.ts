/**
 * Which of the kernel's messages wake the maintenance loop of capture, and how the held guard writes commands.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { oneLine } from '../../src/controlplane/capture/held-guard.ts'
import { concernsRoutes, concernsRules } from '../../src/controlplane/capture/kernel-changes.ts'

/** A message of rtnetlink; `protocol` stands where a route has it. */
function message(type: number, protocol: number): Buffer {
  const bytes = Buffer.alloc(28)
  bytes.writeUInt32LE(bytes.length, 0)
  bytes.writeUInt16LE(type, 4)
  bytes[21] = protocol
  return bytes
}

const NEW_ROUTE = 24
const DELETED_ROUTE = 25
const DELETED_RULE = 33
const OURS = 213
const KERNEL = 2

test('routes of ours and any rule of routing concern capture, other routes do not', () => {
  assert.equal(concernsRoutes(message(DELETED_ROUTE, OURS)), true)
  assert.equal(concernsRoutes(message(DELETED_RULE, KERNEL)), true)
  assert.equal(concernsRoutes(message(NEW_ROUTE, KERNEL)), false)
  const both = Buffer.concat([message(NEW_ROUTE, KERNEL), message(DELETED_ROUTE, OURS)])
  assert.equal(concernsRoutes(both), true)
})

test('a message that cannot be read is taken for one that concerns capture', () => {
  const broken = message(NEW_ROUTE, KERNEL)
  broken.writeUInt32LE(0, 0)
  assert.equal(concernsRoutes(broken), true)
})

test('tables of ours, and the chains of iptables and firewalld that may drop, are recognized', () => {
  assert.equal(concernsRules(Buffer.from('\x08\0\x01\0hostmesh_guard\0')), true)
  assert.equal(concernsRules(Buffer.from('\x08\0\x01\0nat\0HOSTMESH_OUTPUT\0')), true)
  assert.equal(concernsRules(Buffer.from('\x08\0\x01\0filter\0OUTPUT\0')), true)
  assert.equal(concernsRules(Buffer.from('\x08\0\x01\0firewalld\0filter_OUTPUT\0')), true)
  assert.equal(concernsRules(Buffer.from('\x08\0\x01\0filter\0DOCKER\0')), false)
  assert.equal(concernsRules(Buffer.from('\x08\0\x01\0filter\0DOCKER-OUTPUTS\0')), false)
})

test('a table becomes one line that nft reads as one transaction', () => {
  const text =
    'flush table inet t\ntable inet t {\n  set s {\n    type inet_service\n  }\n  chain c {\n    type filter hook output priority 0; policy accept;\n  }\n}\n'
  assert.equal(
    oneLine(text),
    'flush table inet t; table inet t { set s { type inet_service; }; chain c { type filter hook output priority 0; policy accept; }; };',
  )
})
