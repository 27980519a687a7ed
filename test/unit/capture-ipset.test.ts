/**
 * Texts for `ipset restore`: what becomes a member, and that small changes stay small.
 */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import * as fc from 'fast-check'
import {
  renderCreate,
  renderReplace,
  renderUpdate,
  setMembers,
} from '../../src/controlplane/capture/ipset.ts'
import { MAX_INSTANCE_ADDRESSES } from '../../src/controlplane/capture/set-members.ts'
import { MeshError } from '../../src/lib/errors.ts'

describe('setMembers()', () => {
  test('sorts addresses by family, in canonical spelling and once each', () => {
    const { v4, v6 } = setMembers([
      { ip: '10.0.0.7', port: 5_432 },
      { ip: '::ffff:10.0.0.7', port: 5_432 },
      { ip: 'FD00:0:0:0::7', port: 80 },
    ])
    assert.deepEqual([...v4], ['10.0.0.7,tcp:5432'])
    assert.deepEqual([...v6], ['fd00::7,tcp:80'])
  })

  test('leaves out what is another machine on every host', () => {
    const ips = ['127.0.0.1', '127.9.9.9', '::1', '0.0.0.0', '::', '224.0.0.1', 'ff02::1']
    const { v4, v6 } = setMembers(ips.map((ip) => ({ ip, port: 80 })))
    assert.equal(v4.size + v6.size, 0)
  })

  test('refuses text that is no address, so that no line can be injected', () => {
    for (const address of [
      { ip: '10.0.0.1\nflush other', port: 80 },
      { ip: 'db', port: 80 },
      { ip: '10.0.0.1', port: 0 },
      { ip: '10.0.0.1', port: 65_536 },
    ])
      assert.throws(
        () => setMembers([address]),
        (error) => error instanceof MeshError && error.code === 'HM_CAPTURE_INSTANCES_INVALID',
      )
  })

  test('refuses more addresses than a set takes', () => {
    const addresses = Array.from({ length: MAX_INSTANCE_ADDRESSES + 1 }, (_, index) => ({
      ip: `10.${index >> 16}.${(index >> 8) & 255}.${index & 255}`,
      port: 80,
    }))
    assert.throws(() => setMembers(addresses), /262145 instance addresses/)
    assert.equal(setMembers(addresses.slice(1)).v4.size, MAX_INSTANCE_ADDRESSES)
  })
})

describe('texts', () => {
  test('a replacement is built beside the set and swapped in', () => {
    const set = { name: 'hostmesh_instances6', kind: 'instances', family: 'v6' } as const
    assert.equal(
      renderReplace(set, new Set(['fd00::7,tcp:80'])),
      `${renderCreate(set)}create hostmesh_instances6_next hash:ip,port family inet6 maxelem 262144
flush hostmesh_instances6_next
add hostmesh_instances6_next fd00::7,tcp:80
swap hostmesh_instances6_next hostmesh_instances6
destroy hostmesh_instances6_next
`,
    )
  })

  test('an update names what changed and nothing else, additions first', () => {
    const before = new Set(['10.0.0.1,tcp:80', '10.0.0.2,tcp:80', '10.0.0.3,tcp:80'])
    const after = new Set(['10.0.0.2,tcp:80', '10.0.0.3,tcp:80', '10.0.0.4,tcp:80'])
    assert.equal(
      renderUpdate('hostmesh_instances', before, after),
      'add hostmesh_instances 10.0.0.4,tcp:80\ndel hostmesh_instances 10.0.0.1,tcp:80\n',
    )
    assert.equal(renderUpdate('hostmesh_instances', after, after), '')
    assert.equal(renderUpdate('hostmesh_instances', before, new Set(['10.9.9.9,tcp:1'])), undefined)
  })

  test('an update turns any set into any other', () => {
    const anySet = fc
      .uniqueArray(fc.integer({ min: 1, max: 30 }), { maxLength: 30 })
      .map((ports) => new Set(ports.map((port) => `10.0.0.1,tcp:${port}`)))
    fc.assert(
      fc.property(anySet, anySet, (before, after) => {
        const text = renderUpdate('hostmesh_instances', before, after)
        if (text === undefined) return
        const members = new Set(before)
        for (const line of text.split('\n').filter(Boolean)) {
          const [verb, set, member = ''] = line.split(' ')
          assert.equal(set, 'hostmesh_instances')
          if (verb === 'add') members.add(member)
          else assert.ok(members.delete(member))
        }
        assert.deepEqual(new Set([...members].toSorted()), new Set([...after].toSorted()))
      }),
      { seed: 1 },
    )
  })
})
