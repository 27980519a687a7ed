/**
 * Whose a connection is, by nftables: no connection tracking, so that a port remembers nobody.
 */
import { test } from 'node:test'
import { reusePorts } from './port-reuse.ts'

test('by nftables ten thousand reused ports of each kind are nobody else’s', (t) =>
  reusePorts(t, { backend: 'nftables', isDenied: false }))
