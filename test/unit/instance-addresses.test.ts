/**
 * Whose an address of an instance is, and what capture does with it.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { DISPUTED, type InstanceAddress } from '../../src/controlplane/catalog/catalog.ts'
import { shareInstanceAddresses } from '../../src/controlplane/discovery/instance-addresses.ts'
import { instanceSets } from '../../src/daemon/captured-instances.ts'
import { endpoint, local, service } from './explain-fixtures.ts'

const ADDRESS = { ip: '10.0.0.2', port: 5432 }

function claim(since: number, change: Partial<InstanceAddress> = {}): InstanceAddress {
  return { ...ADDRESS, node: 'b', since, ...change }
}

function share(
  claims: Record<string, readonly InstanceAddress[]>,
  localServices = [local('web')],
  nodeName = 'a',
) {
  const catalogServices = new Map(
    Object.entries(claims).map(([name, addresses]) => [name, { addresses }]),
  )
  const { byService, problems } = shareInstanceAddresses({
    nodeName,
    localServices,
    catalogServices,
  })
  const owners = [...byService].filter(([, addresses]) => addresses.length > 0)
  return { owners: owners.map(([name]) => name), problems }
}

test('of two claims for one address the one that was registered first stays, in any order, and both are named', () => {
  for (const claims of [
    { db: [claim(5)], evil: [claim(9)] },
    { evil: [claim(9)], db: [claim(5)] },
    { aaa: [claim(9)], db: [claim(5)] },
  ]) {
    const { owners, problems } = share(claims)
    assert.deepEqual(owners, ['db'])
    assert.equal(problems.length, 1)
    assert.match(problems[0]?.message ?? '', /(evil|aaa) claims 10\.0\.0\.2:5432 on b.*service db/)
  }
})

test('another port, or another address, is another claim', () => {
  const other = [claim(9, { port: 5433 }), claim(9, { ip: '10.0.0.3', node: 'c' })]
  const { owners, problems } = share({ db: [claim(5)], queue: other })
  assert.deepEqual(owners, ['db', 'queue'])
  assert.deepEqual(problems, [])
})

test('an instance that is gone keeps its address against others of its node', () => {
  const gone = claim(5, { goneSinceMs: 1 })
  assert.deepEqual(share({ db: [gone], evil: [claim(9)] }).owners, ['db'])
})

test('an address that another node has by now is that of the service there, and nobody is at fault', () => {
  const gone = claim(5, { goneSinceMs: 1 })
  const { owners, problems } = share({ db: [gone], queue: [claim(9, { node: 'c' })] })
  assert.deepEqual(owners, ['queue'])
  assert.deepEqual(problems, [])
})

test('a node is the same in whatever case a registration has written its name', () => {
  const gone = claim(5, { goneSinceMs: 1 })
  assert.deepEqual(share({ db: [gone], evil: [claim(9, { node: 'B' })] }).owners, ['db'])
})

test("a disputed address is nobody's and captured all the same, unless somebody was there for certain", () => {
  const disputed = [claim(DISPUTED)]
  for (const claims of [{ db: disputed }, { db: disputed, evil: disputed }])
    assert.deepEqual(share(claims), { owners: [''], problems: [] })
  assert.deepEqual(share({ db: [claim(5)], evil: disputed }).owners, ['db'])
  const own = [local('db', { target: { ip: '127.0.0.1', port: 5432 } })]
  assert.deepEqual(share({ db: disputed, evil: disputed }, own, 'b').owners, ['db'])
})

test('on its own host the configuration comes before what the catalog has', () => {
  const own = [local('db', { target: { ip: '127.0.0.1', port: 5432 } })]
  const claims = { db: [claim(9)], evil: [claim(5)] }
  assert.deepEqual(share(claims, own, 'b').owners, ['db'])
  assert.deepEqual(share(claims, own, 'a').owners, ['evil'], 'the host of another node has no say')
})

test('every address of an instance is captured: here, elsewhere, without a proxy; loopback never', () => {
  const here = endpoint('db', 1, { local: true })
  const db = {
    ...service('db', 1, [here, endpoint('db', 2)]),
    addresses: [
      { ip: '10.0.0.1', port: 5432 },
      { ip: '10.0.0.2', port: 5432 },
      { ip: '10.0.0.9', port: 5432 },
      { ip: '127.0.0.1', port: 5432 },
    ],
  }
  assert.deepEqual(instanceSets([db]), {
    captured: db.addresses.slice(0, 3),
    permitted: [],
  })
})

test('of a permissive service an address without a proxy that serves it is permitted, the others are captured', () => {
  const db = {
    ...service('db', 1, [endpoint('db', 2), endpoint('db', 3, { health: 'critical' })]),
    addresses: [2, 3, 9].map((last) => ({ ip: `10.0.0.${last}`, port: 5432 })),
  }
  const expected = { captured: db.addresses.slice(0, 1), permitted: db.addresses.slice(1) }
  for (const permissive of [['db'], ['*'], ['cache', 'db']])
    assert.deepEqual(instanceSets([db], { permissive }), expected)
  assert.deepEqual(instanceSets([db], { permissive: ['cache'] }), {
    captured: db.addresses,
    permitted: [],
  })
})

test('a host that carries nothing any more lets go of all that is permissive, followed or not', () => {
  const db = {
    ...service('db', 1, [endpoint('db', 2)]),
    addresses: [{ ip: '10.0.0.2', port: 5432 }],
  }
  const web = { ip: '10.0.0.3', port: 80 }
  const cache = { ip: '10.0.0.4', port: 6379 }
  const dormant = new Map([
    ['web', [web]],
    ['cache', [cache]],
  ])
  assert.deepEqual(
    instanceSets([db], { permissive: ['db', 'web'], dormant, acceptsConnections: false }),
    {
      captured: [cache],
      permitted: [...db.addresses, web],
    },
  )
})
