/**
 * The procedure of docs/migrate-from-envoy.md, step by step, on three hosts that all run sidecars at first,
 * under a load of which not one request may fail.
 *
 * ```
 *   a: web ── http ──> b: api ── tcp ──> c: db
 * ```
 */
import assert from 'node:assert/strict'
import { after, before, describe, test } from 'node:test'

import type { Consul } from '../harness/consul.ts'
import {
  definitionWithSidecar,
  EnvoySidecar,
  FOR_ENVOYS,
  plainDefinition,
  type SidecarOptions,
} from '../harness/envoy-sidecar.ts'
import { eventually } from '../harness/eventually.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import { MeshApp } from '../harness/mesh-app.ts'
import type { Service } from '../harness/service.ts'

/** The local upstream ports of the sidecars, and beside them those of hostmesh. */
const API_PORT = { envoy: 9191, hostmesh: 19_191 } as const
const DB_PORT = { envoy: 9192, hostmesh: 19_192 } as const

/** One host that is to be moved. */
interface Stage {
  readonly service: Service
  readonly sidecar: SidecarOptions
  envoy?: EnvoySidecar
}

describe('three hosts that run Envoy sidecars', () => {
  let mesh: Mesh<Consul>
  let web: MeshApp
  const stages = new Map<string, Stage>()

  before(async () => {
    mesh = await startMesh({
      hosts: ['a', 'b', 'c'],
      catalog: 'consul',
      consul: FOR_ENVOYS,
      capture: 'off',
    })
    const declare = (
      host: string,
      name: string,
      port: number,
      upstreams: Readonly<Record<string, { envoy: number; hostmesh: number }>>,
    ): Stage => {
      const portsOf = (of: 'envoy' | 'hostmesh'): Record<string, number> =>
        Object.fromEntries(Object.entries(upstreams).map(([to, ports]) => [to, ports[of]]))
      const service = mesh
        .host(host)
        .service(name, { listens: port, identity: 'none', upstreams: portsOf('hostmesh') })
      const stage: Stage = { service, sidecar: { number: 0, upstreams: portsOf('envoy') } }
      stages.set(host, stage)
      return stage
    }
    declare('a', 'web', 7000, { api: API_PORT })
    declare('b', 'api', 7001, { db: DB_PORT })
    declare('c', 'db', 7002, {})
    for (const [name, protocol] of [
      ['web', 'http'],
      ['api', 'http'],
      ['db', 'tcp'],
    ])
      await mesh.catalog.server.put('/v1/config', {
        Kind: 'service-defaults',
        Name: name,
        Protocol: protocol,
      })
    await mesh.allow('web', 'api')
    await mesh.allow('api', 'db')
    for (const [host, stage] of stages) {
      const { service, sidecar } = stage
      await mesh.catalog.agent(host).define([definitionWithSidecar(service, sidecar)])
      if (service.instance !== undefined) mesh.joined(service.instance)
    }
    const [onA, onB, onC] = ['a', 'b', 'c'].map((host) => stageOf(host).service)
    assert.ok(onA && onB && onC)
    const [api, db] = [await MeshApp.start(mesh, onB), await MeshApp.start(mesh, onC)]
    web = await MeshApp.start(mesh, onA)
    await db.serve('tcp')
    await api.serve('http')
    await api.relayTo({ protocol: 'tcp', ip: '127.0.0.1', port: DB_PORT.envoy })
    await Promise.all(
      [...stages.values()].map(async (stage) => {
        stage.envoy = await EnvoySidecar.start(mesh, stage.service, 0)
      }),
    )
    const target = { protocol: 'http', ip: '127.0.0.1', port: API_PORT.envoy } as const
    await eventually(async () => assert.equal(await web.call(target), 'api>db'), {
      withinMs: 30_000,
    })
    await web.startLoad('shopping', target, 3)
  })

  after(async () => {
    // Shown when something failed: which host refused what, and why.
    for (const host of stages.keys())
      for (const line of mesh.host(host).daemon.log.split('\n'))
        if (/refused|broken off|"level":"?(warn|error|40|50)/.test(line))
          process.stdout.write(`${host} ${line}\n`)
    await mesh?.[Symbol.asyncDispose]()
  })

  function stageOf(host: string): Stage {
    const stage = stages.get(host)
    assert.ok(stage)
    return stage
  }

  /** Step 1: hostmesh runs, and callers may use it as well as the sidecar. */
  async function startBeside(host: string): Promise<void> {
    const { service } = stageOf(host)
    await mesh.prepare(mesh.host(host))
    await mesh.host(host).daemon.start()
    await eventually(async () => {
      const entries = await proxiesOf(service.name)
      const ours = entries.find(({ id }) => id === `${service.id}-hostmesh`)
      assert.equal(ours?.isPassing, true, `${service.id}-hostmesh is not passing yet`)
    })
  }

  /** Steps 3 to 6: callers leave the sidecar, it goes from the definition, drains and stops. */
  async function retireSidecar(host: string): Promise<void> {
    const { service, envoy } = stageOf(host)
    assert.ok(envoy)
    const { namespace } = mesh.host(host)
    const maintained = `-service=${service.id}-sidecar-proxy`
    await namespace.run('consul', 'maint', '-enable', maintained, '-reason', 'moving to hostmesh')
    await eventually(async () => {
      const sidecar = (await proxiesOf(service.name)).find(({ id }) => id.endsWith('sidecar-proxy'))
      assert.equal(sidecar?.isPassing, false)
    })
    await mesh.catalog.agent(host).define([plainDefinition(service)])
    await eventually(async () => {
      const ids = (await proxiesOf(service.name)).map(({ id }) => id)
      assert.deepEqual(ids, [`${service.id}-hostmesh`])
    })
    await envoy.ask('POST', '/healthcheck/fail')
    let quiet = 0
    await eventually(
      async () => {
        const open = await envoy.stat(/^listener\.(?!admin).*\.downstream_cx_active$/)
        quiet = open === 0 ? quiet + 1 : 0
        assert.ok(quiet >= 5, `${open} connections are open in the sidecar of ${service.id}`)
      },
      { withinMs: 60_000, everyMs: 200 },
    )
    await envoy.stop()
  }

  async function proxiesOf(
    service: string,
  ): Promise<readonly { readonly id: string; readonly isPassing: boolean }[]> {
    const entries = (await mesh.catalog.server.get(`/v1/health/connect/${service}`)) as {
      Service: { ID: string }
      Checks: { Status: string }[]
    }[]
    return entries.map(({ Service, Checks }) => ({
      id: Service.ID,
      isPassing: Checks.every(({ Status }) => Status === 'passing'),
    }))
  }

  /** @throws when a request has failed, or the load does not move. */
  async function assertLoadIsWell(): Promise<void> {
    const soFar = await web.loadSoFar('shopping')
    await eventually(async () => {
      const { answered } = await web.loadSoFar('shopping')
      assert.ok(answered >= soFar.answered + 30, 'the load stands still')
    })
    const { failures, byAnswer } = await web.loadSoFar('shopping')
    assert.deepEqual(failures, [])
    assert.deepEqual(Object.keys(byAnswer), ['api>db'])
  }

  /** Connections that a host's daemon has carried so far between two services. */
  async function carried(host: string, source: string, destination: string): Promise<number> {
    return mesh.host(host).daemon.metric('hostmesh_tcp_connections_opened_total', {
      source_service: source,
      destination_service: destination,
    })
  }

  test('the host in the middle moves, its application by a redirect of its upstream port', async () => {
    await startBeside('b')
    await assertLoadIsWell()
    await mesh.host('b').namespace.run(...redirect('-A', DB_PORT))
    await eventually(async () => assert.ok((await carried('b', 'api', 'db')) > 0))
    await retireSidecar('b')
    await eventually(async () => assert.ok((await carried('b', 'web', 'api')) > 0))
    await assertLoadIsWell()
  })

  test('the host of the caller moves, its application by the new port', async () => {
    await startBeside('a')
    await web.moveLoad('shopping', API_PORT.hostmesh)
    await eventually(async () => assert.ok((await carried('a', 'web', 'api')) > 0))
    await retireSidecar('a')
    await assertLoadIsWell()
    const { tunnels } = await mesh.host('a').daemon.peers()
    assert.ok(
      tunnels.some(({ destination }) => destination === 'api'),
      'two hosts with hostmesh speak by tunnel',
    )
  })

  test('the host of the last service moves, which calls nobody', async () => {
    await startBeside('c')
    await retireSidecar('c')
    await eventually(async () => assert.ok((await carried('c', 'api', 'db')) > 0))
    await assertLoadIsWell()
  })

  test('not one request of the whole time has failed', async () => {
    const report = await web.stopLoad('shopping')
    assert.deepEqual(report.failures, [])
    assert.equal(report.failed, 0)
    assert.ok(report.answered > 500, `only ${report.answered} calls`)
    await mesh.host('b').namespace.run(...redirect('-D', DB_PORT))
  })
})

/**
 * Sends new connections to a sidecar's upstream port to hostmesh's. Without --syn the rule would also take those
 * that are open, on a host that has tracked no connections so far: they would be cut.
 */
function redirect(action: '-A' | '-D', port: { envoy: number; hostmesh: number }): string[] {
  const to = ['REDIRECT', '--to-ports', `${port.hostmesh}`]
  const which = ['-d', '127.0.0.1', '-p', 'tcp', '--syn', '--dport', `${port.envoy}`]
  return ['iptables', '-w', '-t', 'nat', action, 'OUTPUT', ...which, '-j', ...to]
}
