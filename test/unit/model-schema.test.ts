/**
 * Claims about src/model/schema.ts: what is written as JSON comes back whole, and what is none of the model does not.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { z } from 'zod'
import { localServiceSchema, meshServiceSchema, policyMembers } from '../../src/model/schema.ts'
import type { LocalService } from '../../src/model/service.ts'
import type { MeshService, ServicePolicy } from '../../src/model/snapshot.ts'
import { endpoint, intention, meshService } from '../harness/builders.ts'

const policySchema = z.object(policyMembers)

const cluster = {
  name: 'dc2/db:v2',
  service: 'db',
  datacenter: 'dc2',
  subset: 'v2',
  connectTimeoutMs: 700,
  endpoints: [endpoint('b/db', { application: undefined }), endpoint('c/db', { priority: 1 })],
}
const service: MeshService = meshService('db', {
  virtualIps: ['240.0.0.1'],
  routes: [
    {
      match: { kind: 'any' },
      clusters: [
        { cluster: 'dc2/db:v2', weight: 0.5 },
        { cluster: 'db', weight: 99.5 },
      ],
    },
  ],
  clusters: [...meshService('db', { endpoints: [endpoint('a/db')] }).clusters, cluster],
  addresses: [{ ip: '10.0.0.7', port: 80 }],
})
const policy: ServicePolicy = {
  destination: 'db',
  intentions: [
    intention('web', 'db', 'allow'),
    {
      ...intention('api', 'db'),
      permissions: [
        {
          action: 'deny',
          path: { kind: 'regex', value: '/v1/.*' },
          methods: ['GET'],
          headers: [{ name: 'x', kind: 'present', value: '', invert: true, ignoreCase: false }],
        },
        { action: 'allow', path: undefined, methods: ['PUT'], headers: [] },
      ],
    },
    { ...intention('*', 'db'), undecidable: 'has JWT requirements' },
  ],
  defaultPolicy: 'deny',
}
const local: LocalService = {
  name: 'db',
  id: 'db-1',
  target: { ip: '127.0.0.1', port: 5432 },
  delivery: { from: '127.0.0.9', proxyHeader: true },
  connectPort: 20_000,
  selector: { kind: 'sourceAddress', ip: '172.17.0.2' },
  capturePort: 15_100,
  upstreams: [{ destination: 'api', bind: { ip: '127.0.0.1', port: 1 } }],
}

test('what is written comes back whole', () => {
  for (const [schema, value] of [
    [meshServiceSchema, service],
    [policySchema, policy],
    [localServiceSchema, local],
  ] as const) {
    const text = JSON.stringify(value)
    assert.deepEqual(JSON.parse(JSON.stringify(schema.parse(JSON.parse(text)))), JSON.parse(text))
  }
})

test('what is none of the model is refused, and members that it does not have are dropped', () => {
  for (const broken of [
    { ...service, clusters: [] },
    { ...service, clusters: [{ ...cluster, endpoints: [{ ...endpoint('a/db'), weight: '1' }] }] },
    { ...service, routes: [{ match: { kind: 'path' }, clusters: [] }] },
  ])
    assert.equal(meshServiceSchema.safeParse(broken).success, false)
  assert.deepEqual(meshServiceSchema.parse({ ...service, secret: 1 }), service)
})
