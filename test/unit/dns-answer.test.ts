/**
 * Claims about src/controlplane/dns/answer.ts: which names mean a service, and what is said of it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  answerService,
  answerWithout,
  needsOf,
  placeOf,
  type ServiceLookup,
  zonesOf,
} from '../../src/controlplane/dns/answer.ts'
import { type Reply, rcodes } from '../../src/controlplane/dns/message.ts'
import type { Endpoint } from '../../src/model/endpoint.ts'
import { endpoint, meshService } from '../harness/builders.ts'

const zones = zonesOf('dc1')
const times = { ttlS: 30 }

function listening(key: string, port: number | undefined): Endpoint {
  const application = port === undefined ? undefined : { ip: '10.0.0.2', port }
  return endpoint(key, { application })
}

const db = meshService('db', {
  virtualIps: ['240.0.0.7', 'fdc6::7'],
  endpoints: [listening('b/db-1', 5_433), listening('b/db-2', 5_432), listening('b/db-3', 5_432)],
})

function ask(name: string, type: string, known: Record<string, ServiceLookup> = {}): Reply {
  const question = { name, type, classNumber: 1 }
  const place = placeOf(question, zones)
  if (place.kind !== 'service') return answerWithout(question, place, times)
  const found = { db: { kind: 'service', service: db } as const, ...known }[place.service]
  const lookup: ServiceLookup = found ?? { kind: 'unknown', isParent: false }
  return answerService(question, place, lookup, times)
}

function data(reply: Reply): unknown[] {
  return reply.answers.map((record) => ('data' in record ? record.data : undefined))
}

test('a service is known below mesh, virtual.consul and virtual.<datacenter>.consul, in any case', () => {
  for (const name of ['db.mesh', 'DB.Mesh', 'db.virtual.consul', 'db.virtual.DC1.consul']) {
    const reply = ask(name, 'A')
    assert.equal(reply.rcode, rcodes.noError)
    assert.ok(reply.isAuthoritative)
    assert.deepEqual(reply.answers, [{ type: 'A', name, ttl: 30, data: '240.0.0.7' }])
  }
})

test('everything else is refused: other domains, other classes, zone transfers', () => {
  for (const name of ['db.example.com', 'consul', 'db.service.consul', 'dbmesh', 'mesh.com', ''])
    assert.equal(ask(name, 'A').rcode, rcodes.refused, name)
  assert.equal(ask('db.virtual.dc2.consul', 'A').rcode, rcodes.refused)
  for (const type of ['AXFR', 'IXFR']) assert.equal(ask('mesh', type).rcode, rcodes.refused)
  const chaos = placeOf({ name: 'db.mesh', type: 'A', classNumber: 3 }, zones)
  assert.equal(chaos.kind, 'elsewhere')
})

test('names of services may contain dots', () => {
  const service = { ...db, name: 'a.b' }
  const known = {
    'a.b': { kind: 'service', service } as const,
    b: { kind: 'unknown', isParent: true } as const,
  }
  assert.deepEqual(data(ask('a.b.mesh', 'A', known)), ['240.0.0.7'])
  assert.equal(ask('_a.b._tcp.mesh', 'SRV', known).answers.length, 1)
  // Nothing may be concluded from "no such name" for names below it (RFC 8020).
  assert.equal(ask('b.mesh', 'A', known).rcode, rcodes.noError)
})

test('AAAA is the IPv6 address; a kind that the service has not is no error, with an SOA', () => {
  assert.deepEqual(data(ask('db.mesh', 'AAAA')), ['fdc6::7'])
  const v4 = { db: { kind: 'service', service: { ...db, virtualIps: ['240.0.0.7'] } } as const }
  for (const [type, known] of [
    ['AAAA', v4],
    ['TXT', {}],
    ['UNKNOWN_65', {}],
  ] as const) {
    const reply = ask('db.mesh', type, known)
    assert.equal(reply.rcode, rcodes.noError)
    assert.deepEqual(reply.answers, [])
    assert.equal(reply.authorities[0]?.type, 'SOA')
  }
})

test('SRV gives the port that most instances have, and the addresses beside it', () => {
  for (const [name, target] of [
    ['Db.mesh', 'Db.mesh'],
    ['_Db._TCP.mesh', 'Db.mesh'],
  ] as const) {
    const reply = ask(name, 'SRV')
    assert.deepEqual(data(reply), [{ priority: 1, weight: 1, port: 5_432, target }])
    assert.deepEqual(
      reply.additionals.map((record) => [record.type, record.name]),
      [
        ['A', target],
        ['AAAA', target],
      ],
    )
  }
  assert.deepEqual(data(ask('_db._tcp.mesh', 'A')), [])
  assert.equal(ask('_db._tcp.mesh', 'A').rcode, rcodes.noError)
})

test('a service whose applications nobody knows the port of has no SRV record', () => {
  const service = meshService('db', { endpoints: [listening('b/db-1', undefined)] })
  const reply = ask('db.mesh', 'SRV', { db: { kind: 'service', service } })
  assert.equal(reply.rcode, rcodes.noError)
  assert.deepEqual(reply.answers, [])
})

test('ANY gets one kind of address, not all', () => {
  assert.deepEqual(data(ask('db.mesh', 'ANY')), ['240.0.0.7'])
})

test('a service that does not exist, or that no name can have, is NXDOMAIN with an SOA of small life', () => {
  for (const name of ['nothing.mesh', '_nothing._tcp.mesh', '_db._udp.mesh', 'a\ufffdb.mesh']) {
    const reply = ask(name, 'A')
    assert.equal(reply.rcode, rcodes.nameError, name)
    const [soa] = reply.authorities
    assert.ok(soa?.type === 'SOA')
    assert.ok((soa.ttl ?? 0) <= 5 && (soa.data.minimum ?? 0) <= 5)
  }
  assert.equal(ask('_tcp.mesh', 'A').rcode, rcodes.noError, '_tcp exists for those below it')
})

test('what is not known yet is a failure, never "no such name"', () => {
  const reply = ask('db.mesh', 'A', { db: { kind: 'unavailable' } })
  assert.equal(reply.rcode, rcodes.serverFailure)
  assert.ok(!reply.isAuthoritative)
  assert.deepEqual(reply.authorities, [])
})

test('the apex has SOA and NS, and no address', () => {
  assert.equal(ask('mesh', 'SOA').answers[0]?.type, 'SOA')
  assert.deepEqual(data(ask('virtual.consul', 'NS')), ['virtual.consul'])
  assert.deepEqual(data(ask('mesh', 'A')), [])
  assert.equal(ask('mesh', 'A').rcode, rcodes.noError)
})

test('addresses are answered before anything else is known; a port is not made up', () => {
  const services = { db: { kind: 'listed', virtualIps: ['240.0.0.7'] } } as const
  assert.deepEqual(data(ask('db.mesh', 'A', services)), ['240.0.0.7'])
  assert.equal(ask('db.mesh', 'AAAA', services).rcode, rcodes.noError)
  assert.deepEqual(data(ask('db.mesh', 'AAAA', services)), [])
  assert.equal(ask('db.mesh', 'SRV', services).rcode, rcodes.serverFailure)
  const needs = ['A', 'AAAA', 'ANY', 'SRV'].map((type) =>
    needsOf({ name: 'db.mesh', type, classNumber: 1 }),
  )
  assert.deepEqual(needs, ['addresses', 'addresses', 'addresses', 'instances'])
})
