/**
 * One mesh of two kinds of hosts on a current Consul: `new` runs hostmesh, `old` runs an Envoy sidecar for each
 * service. Every protocol in both directions, allowed and denied, and while the CA rotates.
 */
import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { after, before, describe, test } from 'node:test'
import type { Consul } from '../harness/consul.ts'
import { definitionWithSidecar, EnvoySidecar, FOR_ENVOYS } from '../harness/envoy-sidecar.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { MeshApp } from '../harness/mesh-app.ts'
import type { Target } from '../harness/mesh-app-protocol.ts'

const PROTOCOLS = ['tcp', 'http', 'http2', 'grpc'] as const

type Protocol = Target['protocol']

/** Local upstream ports: of Envoys for services of hostmesh, and of hostmesh for services of Envoys. */
const PORT_OF = { tcp: 9101, http: 9102, http2: 9103, grpc: 9104 } as const
const VAULT_PORT = 9109

function at(protocol: Protocol, port: number): Target {
  return { protocol, ip: '127.0.0.1', port }
}

describe('hostmesh and Envoy sidecars in one mesh', () => {
  let mesh: Mesh<Consul>
  /** Callers: of hostmesh, of a sidecar, and one of hostmesh that nobody allows. */
  let web: MeshApp
  let shop: MeshApp
  let stranger: MeshApp
  let sidecars: readonly EnvoySidecar[]

  before(async () => {
    mesh = await startMesh({
      hosts: ['new', 'old'],
      catalog: 'consul',
      consul: FOR_ENVOYS,
      daemonless: ['old'],
    })
    const [newer, older] = [mesh.host('new'), mesh.host('old')]
    const { server } = mesh.catalog
    const byProtocol = (prefix: string): Record<string, number> =>
      Object.fromEntries(PROTOCOLS.map((protocol) => [`${prefix}-${protocol}`, PORT_OF[protocol]]))
    for (const protocol of PROTOCOLS)
      for (const prefix of ['hm', 'ev'])
        await server.put('/v1/config', {
          Kind: 'service-defaults',
          Name: `${prefix}-${protocol}`,
          Protocol: protocol,
        })
    const webService = newer.service('web', { upstreams: byProtocol('ev') })
    const strangerService = newer.service('stranger', {
      upstreams: { 'ev-tcp': 9201, 'ev-http': 9202 },
    })
    const hosted = PROTOCOLS.map((protocol, index) =>
      newer.service(`hm-${protocol}`, { listens: 7_001 + index }),
    )
    const vault = newer.service('hm-vault', { listens: 7_009 })
    const sidecarred = PROTOCOLS.map((protocol, index) =>
      older.service(`ev-${protocol}`, { listens: 7_001 + index }),
    )
    const shopService = older.service('shop')
    for (const service of [...hosted, ...sidecarred]) {
      const app = await MeshApp.start(mesh, service)
      await app.serve(service.name.split('-')[1] as Protocol)
    }
    await (await MeshApp.start(mesh, vault)).serve('tcp')
    web = await MeshApp.start(mesh, webService)
    stranger = await MeshApp.start(mesh, strangerService)
    shop = await MeshApp.start(mesh, shopService)
    for (const service of [...hosted, vault]) {
      const { instance } = service
      assert.ok(instance)
      await mesh.catalog.join(instance)
      mesh.joined(instance)
    }
    for (const [index, service] of sidecarred.entries()) {
      await mesh.catalog
        .agent('old')
        .put('/v1/agent/service/register', definitionWithSidecar(service, { number: index }))
      if (service.instance !== undefined) mesh.joined(service.instance)
    }
    await mesh.catalog.agent('old').put(
      '/v1/agent/service/register',
      definitionWithSidecar(shopService, {
        number: 8,
        upstreams: { ...byProtocol('hm'), 'hm-vault': VAULT_PORT },
      }),
    )
    // A pure caller has no port, but its sidecar is in the catalog like any other.
    mesh.joined({ service: 'shop', id: 'shop', host: 'old', ip: older.namespace.ip, port: 0 })
    for (const protocol of PROTOCOLS) {
      await mesh.allow('web', `ev-${protocol}`)
      await mesh.allow('shop', `hm-${protocol}`)
    }
    sidecars = await Promise.all([
      ...sidecarred.map((service, index) => EnvoySidecar.start(mesh, service, index)),
      EnvoySidecar.start(mesh, shopService, 8),
    ])
    await mesh.up()
  })

  after(async () => {
    await mesh?.[Symbol.asyncDispose]()
  })

  for (const protocol of PROTOCOLS) {
    test(`hostmesh calls a service behind a sidecar by ${protocol}`, async () => {
      const who = await eventually(() => web.call(at(protocol, PORT_OF[protocol])))
      assert.equal(who, `ev-${protocol}`)
    })

    test(`a sidecar calls a service behind hostmesh by ${protocol}`, async () => {
      const who = await eventually(() => shop.call(at(protocol, PORT_OF[protocol])))
      assert.equal(who, `hm-${protocol}`)
    })
  }

  test('the sidecar denies a service of hostmesh that no intention allows, by tcp with a reset, by http with 403', async () => {
    await assert.rejects(stranger.call(at('tcp', 9201)), /ECONNRESET|no answer/)
    await assert.rejects(stranger.call(at('http', 9202)), /status 403/)
  })

  test('hostmesh denies a sidecar that no intention allows, and counts it', async () => {
    await assert.rejects(shop.call(at('tcp', VAULT_PORT)))
    await eventually(async () => {
      const denied = await mesh.host('new').daemon.metric('hostmesh_tcp_connections_closed_total', {
        source_service: 'shop',
        destination_service: 'hm-vault',
        response_flags: 'DENY',
      })
      assert.ok(denied > 0)
    })
  })

  test('an intention that is written and deleted opens and closes the way in both directions', async () => {
    await mesh.allow('shop', 'hm-vault')
    await mesh.allow('stranger', 'ev-tcp')
    await eventually(async () => {
      assert.equal(await shop.call(at('tcp', VAULT_PORT)), 'hm-vault')
      assert.equal(await stranger.call(at('tcp', 9201)), 'ev-tcp')
    })
    await mesh.deny('shop', 'hm-vault')
    await mesh.deny('stranger', 'ev-tcp')
    await eventually(async () => {
      await assert.rejects(shop.call(at('tcp', VAULT_PORT)))
      await assert.rejects(stranger.call(at('tcp', 9201)))
    })
  })

  test('a root is replaced under load in both directions and all protocols, and not one request fails', async () => {
    for (const protocol of PROTOCOLS) {
      await web.startLoad(protocol, at(protocol, PORT_OF[protocol]))
      await shop.startLoad(protocol, at(protocol, PORT_OF[protocol]))
    }
    const daemon = mesh.host('new').daemon
    const hostmeshSerials = async (): Promise<readonly (string | undefined)[]> =>
      (await daemon.certs()).leaves.map(({ serialNumber }) => serialNumber)
    const envoySerials = (): Promise<readonly ReadonlySet<string>[]> =>
      Promise.all(sidecars.map((sidecar) => sidecar.serials()))
    const [ours, theirs] = [await hostmeshSerials(), await envoySerials()]
    await mesh.catalog.server.put('/v1/connect/ca/configuration', {
      Provider: 'consul',
      Config: {
        PrivateKey: generateKeyPairSync('ec', { namedCurve: 'P-256' })
          .privateKey.export({ type: 'sec1', format: 'pem' })
          .toString(),
        LeafCertTTL: '72h',
      },
    })
    await eventually(
      async () => {
        const [oursNow, theirsNow] = [await hostmeshSerials(), await envoySerials()]
        assert.ok(
          oursNow.every((serial) => !ours.includes(serial)),
          'hostmesh still has a leaf of the old root',
        )
        // What serves connections of before keeps its certificate until they are drained.
        assert.ok(
          theirsNow.every((serials, index) => !serials.isSubsetOf(theirs[index] ?? new Set())),
          'an Envoy has no leaf of the new root',
        )
      },
      { withinMs: 120_000, everyMs: 500 },
    )
    // Some of the load must have begun with the new leaves.
    const soFar = await Promise.all(PROTOCOLS.map((protocol) => web.loadSoFar(protocol)))
    await eventually(async () => {
      for (const [index, protocol] of PROTOCOLS.entries())
        assert.ok((await web.loadSoFar(protocol)).answered > (soFar[index]?.answered ?? 0) + 20)
    })
    for (const protocol of PROTOCOLS)
      for (const app of [web, shop]) {
        const report = await app.stopLoad(protocol)
        assert.deepEqual(report.failures, [], `${app.service.name} by ${protocol}`)
        assert.equal(report.failed, 0)
        const expected = `${app === web ? 'ev' : 'hm'}-${protocol}`
        assert.deepEqual(Object.keys(report.byAnswer), [expected])
        assert.ok(report.answered > 50, `only ${report.answered} calls`)
      }
  })
})
