/** What is read of the host's sockets: who is captured, who is not, and whose caller is gone. */
import assert from 'node:assert/strict'
import { test } from 'node:test'

import {
  abandoned,
  acceptedAt,
  parseSockets,
  uncaptured,
} from '../../src/controlplane/capture/sockets.ts'

const DAEMON = 990
const listing = parseSockets(
  [
    // A captured pair: the caller's end, and the daemon's.
    'ESTAB 0 0 10.0.0.1:40001 10.0.0.2:5432 uid:1001 ino:1 sk:1 <->',
    'ESTAB 0 0 10.0.0.2:5432 10.0.0.1:40001 uid:990 ino:2 sk:2 <->',
    // The daemon's end alone: of a caller that is gone, of one in a container, and a tunnel.
    'CLOSE-WAIT 0 0 10.0.0.2:5432 10.0.0.1:40002 uid:990 ino:3 sk:3 <->',
    'ESTAB 0 0 [fd00::2]:5432 [fd00::1]:40003 uid:990 ino:4 sk:4 <->',
    'ESTAB 0 0 10.0.0.2:5432 172.17.0.5:40004 uid:990 ino:5 sk:5 <->',
    'ESTAB 0 0 10.0.0.1:40005 10.0.0.2:15443 uid:990 ino:6 sk:6 <->',
    // What the daemon dials on this host, whose other side has no room to accept it.
    'SYN-SENT 0 1 127.0.0.1:40008 127.0.0.1:5432 uid:990 ino:8 sk:8 <->',
    'ESTAB 0 9 10.0.0.1:40009 10.0.0.1:5432 uid:990 ino:9 sk:9 <->',
    // Past the mesh.
    'ESTAB 0 0 10.0.0.1:40006 10.0.0.2:5432 uid:1001 ino:7 sk:7 <->',
    // Was captured, and is over: the kernel remembers the caller's end alone.
    'TIME-WAIT 0 0 10.0.0.1:40007 10.0.0.2:5432',
    'what is no line of a socket',
  ].join('\n'),
)

test('connections past the mesh have no other end on this host', () => {
  const local = new Set(uncaptured(listing).map((socket) => socket.local))
  assert.ok(local.has('10.0.0.1 . 40006'))
  assert.ok(!local.has('10.0.0.1 . 40001'))
  assert.ok(!local.has('10.0.0.1 . 40007'), 'what is over needs no sparing')
})

test('what the daemon has accepted at an address is named by its callers', () => {
  assert.deepEqual(acceptedAt(listing, DAEMON, new Set(['10.0.0.2 . 5432'])), [
    '10.0.0.1 . 40001 . 10.0.0.2 . 5432',
    '10.0.0.1 . 40002 . 10.0.0.2 . 5432',
    '172.17.0.5 . 40004 . 10.0.0.2 . 5432',
  ])
})

test('abandoned is what a caller of this host has left, not a container, a tunnel, a dial of the daemon or somebody else', () => {
  const own = new Set(['10.0.0.1', '127.0.0.1', 'fd00::1'])
  const isMesh = (end: string): boolean => end === '10.0.0.2 . 5432' || end.startsWith('fd00::2 ')
  assert.deepEqual(abandoned(listing, DAEMON, { own, isMesh }), [
    '10.0.0.2 . 5432 . 10.0.0.1 . 40002',
    'fd00::2 . 5432 . fd00::1 . 40003',
  ])
})
