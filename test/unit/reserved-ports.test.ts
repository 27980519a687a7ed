/**
 * Ports of the daemon that the system may give to others.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { unreservedPorts } from '../../src/daemon/reserved-ports.ts'

test('ports outside of the range, and reserved ones, are no problem', () => {
  assert.equal(unreservedPorts([15_100, 15_443], [32_768, 60_999], ''), undefined)
  assert.equal(
    unreservedPorts([15_100, 15_443], [1_024, 65_535], '80,15100-15200,15443\n'),
    undefined,
  )
  assert.equal(unreservedPorts([15_100], undefined, ''), undefined)
})

test('others are named, with the line that reserves them and keeps what is reserved', () => {
  const problem = unreservedPorts([15_443, 15_100, 15_100], [1_024, 65_535], '80,8000-8009\n')
  assert.match(problem?.message ?? '', /1024-65535 reaches 15100, 15443$/)
  assert.equal(problem?.hint, 'sysctl -w net.ipv4.ip_local_reserved_ports=80,8000-8009,15100,15443')
})
