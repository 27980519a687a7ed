/** What the data plane trusts from one trust bundle to the next. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import { readLeaf } from '../../src/controlplane/identity/x509.ts'
import { Credentials } from '../../src/dataplane/tunnel/credentials.ts'
import { makeAuthority, makeLeaf } from './identity-fixtures.ts'

test('what was trusted long ago is not kept, however often certificates are revoked', async () => {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  const { bundle } = makeAuthority()
  const credentials = new Credentials('TLSv1.3')
  const old: WeakRef<object>[] = []
  for (let i = 0; i < 10; i += 1) {
    credentials.setBundle({ ...bundle, revokedSerials: [String(i)] })
    if (credentials.trusted !== undefined) old.push(new WeakRef(credentials.trusted))
    await turn()
  }
  collect()
  assert.ok(old.filter((ref) => ref.deref() !== undefined).length <= 2, 'this one and the last')
})

test('a revocation ends a connection after any number of bundles, and a bundle that lists nothing ends none', () => {
  const authority = makeAuthority()
  const leaf = (service: string) => {
    const made = { service, ...makeLeaf(authority, service) }
    return readLeaf(made, authority.bundle, Date.now())
  }
  const [web, db] = [leaf('web'), leaf('db')]
  const credentials = new Credentials('TLSv1.3')
  credentials.setLeaf(web)
  credentials.setLeaf(db)
  const trust = (...revokedSerials: string[]): void =>
    credentials.setBundle({ ...authority.bundle, revokedSerials })
  trust()
  const own = credentials.of('web')?.proof
  const peer = credentials.of('db')?.proof
  assert.ok(own !== undefined && peer !== undefined)
  const rejection = (): string | undefined =>
    credentials.rejectionReason({ own, peer }, Date.now())?.code
  for (let i = 0; i < 3; i += 1) {
    trust(`AB0${i}`)
    assert.equal(rejection(), undefined)
  }
  trust(peer.serialNumber)
  assert.equal(rejection(), 'HM_TLS_REVOKED')
  trust(own.serialNumber)
  assert.equal(rejection(), 'HM_TLS_REVOKED')
  assert.equal(credentials.of('web'), undefined, 'nor is it shown to anybody')
  trust()
  assert.equal(rejection(), undefined)
})
