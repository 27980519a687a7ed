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
  catalog: { description: 'file x', ageMs: 10, problems: [] },
  certificates: { description: 'builtin x', problems: [] },
  capture: { mode: 'off', inSync: null, problems: [] },
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
    [
      { workers: [{ id: 4, state: 'stopped', connections: 0, restarts: 0 }] },
      'Worker 4 is stopped',
    ],
    [{ problems: ['two services share an address'] }, 'two services share an address'],
  ]
  for (const [part, sentence] of wrong)
    assert.deepEqual(statusProblems({ ...well, ...part }), [sentence])
})
