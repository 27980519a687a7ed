/**
 * Whether the catalog has this host's services as its configuration does.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ownServiceProblems } from '../../src/controlplane/discovery/own-services.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import type { MeshService } from '../../src/model/snapshot.ts'
import { endpoint, local, service } from './explain-fixtures.ts'

const db = local('db', { target: { ip: '127.0.0.1', port: 5432 } })
const good = endpoint('db', 1, { id: 'db', key: 'host-1/db', local: true })

function problemsOf(endpoints: readonly Endpoint[] | undefined, own = db): readonly string[] {
  const services = new Map<string, MeshService>()
  if (endpoints !== undefined) services.set('db', service('db', 1, endpoints))
  return ownServiceProblems([own, local('web')], 'host-1', services).map(String)
}

test('a service that is served as configured is no problem, nor is one that is not known yet', () => {
  assert.deepEqual(problemsOf([good]), [])
  assert.deepEqual(problemsOf([{ ...good, health: 'warning' }]), [])
  assert.deepEqual(problemsOf(undefined), [])
  assert.deepEqual(problemsOf([], local('db')), [], 'a pure caller is offered to nobody')
})

test('one that is missing, or there with another ID or on another node only, is named', () => {
  assert.match(problemsOf([])[0] ?? '', /not in the catalog with Node host-1 and ID "db"$/)
  assert.match(problemsOf([{ ...good, id: 'db-1' }])[0] ?? '', /it is there with ID "db-1"$/)
  assert.match(problemsOf([endpoint('db', 2, { id: 'db' })])[0] ?? '', /not in the catalog/)
})

test('one whose proxy is critical, or whose application the catalog has at another port, is named', () => {
  assert.match(problemsOf([{ ...good, health: 'critical' }])[0] ?? '', /is critical in the catalog/)
  const elsewhere = { ...good, application: { ip: '10.0.0.1', port: 5433 } }
  assert.match(problemsOf([elsewhere])[0] ?? '', /listens at port 5432.*has it at port 5433/)
  const container = local('db', { target: { ip: '172.17.0.2', port: 8080 } })
  assert.deepEqual(problemsOf([elsewhere], container), [], 'a published port may differ')
})

test('one that is critical is to be started, one that is missing to be registered alike', () => {
  const of = (endpoints: readonly Endpoint[]) =>
    ownServiceProblems([db], 'host-1', new Map([['db', service('db', 1, endpoints)]]))[0]
  const critical = of([{ ...good, health: 'critical' }])
  assert.equal(critical?.code, 'HM_CATALOG_CRITICAL')
  assert.match(critical.hint, /^Start db if nobody listens at 127\.0\.0\.1:5432 .*services db/)
  assert.equal(of([])?.code, 'HM_CATALOG_NOT_LISTED')
})

test('a service whose traffic is led to another one is not judged by that', () => {
  assert.deepEqual(problemsOf([endpoint('db-v2', 2)]), [])
})

test('a service that is split is judged by all its subsets, and not judged where it is in none', () => {
  const problemsOfSplit = (endpoints: readonly Endpoint[]): readonly string[] => {
    const whole = service('db', 1, [endpoint('db', 2)])
    const [v1] = whole.clusters
    const v2 = { ...v1, name: 'db:v2', subset: 'v2', endpoints }
    const split: MeshService = { ...whole, clusters: [v1, v2, { ...v2, name: 'db:v3' }] }
    return ownServiceProblems([db], 'host-1', new Map([['db', split]])).map(String)
  }
  assert.deepEqual(problemsOfSplit([good]), [])
  assert.deepEqual(problemsOfSplit([]), [])
  assert.match(problemsOfSplit([{ ...good, id: 'db-1' }])[0] ?? '', /it is there with ID "db-1"$/)
})
