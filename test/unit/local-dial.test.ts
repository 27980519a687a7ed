/**
 * What is dialed for a local service, and what the header before the first byte says.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { localDial, TLV_CALLER } from '../../src/dataplane/deliver/local-dial.ts'
import type { LocalService } from '../../src/model/service.ts'

const target = { ip: '127.0.0.1', port: 8080 }
const service: LocalService = {
  name: 'api',
  id: 'api',
  target,
  connectPort: undefined,
  selector: undefined,
  capturePort: undefined,
  upstreams: [],
}
const caller = {
  service: 'web',
  address: { ip: '10.0.0.1', port: 40_000 },
  originalDestination: { ip: '240.0.0.10', port: 80 },
}
const withHeader: LocalService = { ...service, delivery: { from: undefined, proxyHeader: true } }

test('without a delivery of its own a service is dialed as it is', () => {
  assert.deepEqual(localDial(service, caller), { target })
  assert.deepEqual(
    localDial({ ...service, delivery: { from: undefined, proxyHeader: false } }, caller),
    {
      target,
    },
  )
})

test('a service that listens nowhere is not dialed', () => {
  assert.equal(localDial({ ...withHeader, target: undefined }, caller), undefined)
})

test('the address to come from needs no header', () => {
  const dial = localDial(
    { ...service, delivery: { from: '127.0.0.2', proxyHeader: false } },
    caller,
  )
  assert.deepEqual([dial?.from, dial?.header], ['127.0.0.2', undefined])
})

test('the header has both addresses and the name of the calling service, as the specification lays them out', () => {
  const header = Buffer.from(localDial(withHeader, caller)?.header ?? [])
  assert.equal(
    header.toString('hex'),
    [
      '0d0a0d0a000d0a515549540a', // signature
      '21', // version 2, PROXY
      '11', // TCP over IPv4
      '0012', // 18 bytes follow
      '0a000001',
      'f000000a',
      '9c40',
      '0050',
      'e00003776562', // the caller's name
    ].join(''),
  )
  assert.equal(TLV_CALLER, 0xe0)
})

test('addresses of both families are written as IPv6, and without the caller’s address none is claimed', () => {
  const mixed = localDial(withHeader, {
    ...caller,
    originalDestination: { ip: 'fd00::1', port: 80 },
  })?.header
  assert.equal(mixed?.[13], 0x21)
  const unknown = localDial(withHeader, { ...caller, address: undefined })?.header
  assert.deepEqual([unknown?.[12], unknown?.[13]], [0x20, 0x00])
  assert.ok(
    Buffer.from(unknown ?? [])
      .toString('hex')
      .endsWith('e00003776562'),
  )
})

test('a caller that dialed a local port is said to have originalDestination the application', () => {
  const header = Buffer.from(
    localDial(withHeader, { ...caller, originalDestination: undefined })?.header ?? [],
  ).toString('hex')
  assert.ok(header.includes('7f0000019c401f90'), header)
})
