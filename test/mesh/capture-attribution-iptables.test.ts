/**
 * Whose a connection is, by iptables: connection tracking remembers a port after a reset, and must not be trusted.
 */
import { test } from 'node:test'
import { reusePorts } from './port-reuse.ts'

for (const isDenied of [false, true])
  test(`by iptables ten thousand ports of each kind that the ${isDenied ? 'data plane' : 'caller'} has reset are nobody else’s`, (t) =>
    reusePorts(t, { backend: 'iptables', isDenied }))
