/**
 * What counts as a problem of a host: it decides the exit code of `hostmesh status`.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type StatusDocument, statusProblems } from '../../src/model/admin.ts'

const well: StatusDocument = {
  version: '1',
  node: 'a',
  datacenter: 'dc1',
  pid: 1,
  startedAt: '2026-01-01T00:00:00Z',
  ready: true,
  awaited: [],
  draining: false,
  workers: [{ id: 0, state: 'running', connections: 0, restarts: 3 }],
  catalog: { description: 'file x', ageMs: 10, lastContactMs: null, problems: [] },
  certificates: { description: 'builtin x', problems: [] },
  state: { directory: '/var/lib/hostmesh', parts: [], problems: [] },
  capture: { mode: 'off', inSync: null, problems: [] },
  dns: { address: null },
  snapshotVersion: 1,
  problems: [],
}

test('a ready host without problems has none, earlier restarts of workers included', () => {
  assert.deepEqual(statusProblems(well), [])
  assert.deepEqual(
    statusProblems({ ...well, capture: { mode: 'on', inSync: true, problems: [] } }),
    [],
  )
})

test('each part that is wrong is named with its subject', () => {
  const wrong: [Partial<StatusDocument>, string][] = [
    [
      { ready: false, awaited: ['roots', 'the first snapshot'] },
      'Not ready: waiting for roots, the first snapshot',
    ],
    [{ draining: true, ready: false }, 'The host is draining'],
    [{ catalog: { ...well.catalog, problems: ['gone'] } }, 'Catalog: gone'],
    [{ certificates: { ...well.certificates, problems: ['expired'] } }, 'Certificates: expired'],
    [
      { capture: { mode: 'on', inSync: true, problems: ['no such user'] } },
      'Capture: no such user',
    ],
    [
      { capture: { mode: 'on', inSync: false, problems: [] } },
      'Capture: the rules in the kernel are not the wanted ones',
    ],
    [{ state: { ...well.state, problems: ['the disk is full'] } }, 'State: the disk is full'],
    [
      {
        state: {
          ...well.state,
          parts: [
            { part: 'services', state: 'live', remembered: 0, ageMs: 10 },
            { part: 'policies', state: 'none', remembered: 0, ageMs: null },
            { part: 'certificates', state: 'remembered', remembered: 3, ageMs: 95_400 },
          ],
        },
      },
      'State: 3 certificates are remembered from an earlier run, last confirmed 1m35s ago',
    ],
    [
      {
        state: {
          ...well.state,
          parts: [{ part: 'services', state: 'stale', remembered: 2, ageMs: 7_200_000 }],
        },
      },
      'State: 2 services are remembered from an earlier run and stale, last confirmed 2h ago',
    ],
    [
      {
        state: {
          ...well.state,
          parts: [{ part: 'policies', state: 'stale', remembered: 0, ageMs: 5_400_000 }],
        },
      },
      'State: policies are stale, last confirmed 1h30m ago',
    ],
    [
      { workers: [{ id: 4, state: 'stopped', connections: 0, restarts: 0 }] },
      'Worker 4 is stopped',
    ],
    [{ problems: ['two services share an address'] }, 'two services share an address'],
  ]
  for (const [part, sentence] of wrong)
    assert.deepEqual(statusProblems({ ...well, ...part }), [sentence])
})
