/**
 * A restart with a token that has lost its rights, or is gone, takes nothing away: Consul's empty lists and its
 * 403 are not "nothing there", whether they come to a daemon that runs or to one that has just started.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import type { CatalogPolicy, CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { ConsulCatalog } from '../../src/controlplane/catalog/consul/consul-catalog.ts'
import {
  CATALOG_STATE_VERSION,
  MAX_CATALOG_STATE_BYTES,
  type RememberedCatalog,
  rememberCatalog,
} from '../../src/controlplane/catalog/remembered.ts'
import { silentLog } from '../../src/lib/log.ts'
import { openStateFile } from '../../src/lib/state-file.ts'
import { AclServer } from '../harness/acl-server.ts'
import { type AclToken, documentedPolicy } from '../harness/consul-acl.ts'
import { eventually } from '../harness/eventually.ts'

const NO_RIGHTS = ['key_prefix "x" { policy = "read" }']

describe('a restart with a token without rights', () => {
  let server: AclServer
  let token: AclToken

  before(async () => {
    server = await AclServer.start()
    token = await server.acl.createToken('host', documentedPolicy('db'))
    await server.agent.put('/v1/config', {
      Kind: 'service-defaults',
      Name: 'db',
      Protocol: 'http',
    })
    const intention = {
      SourceName: 'web',
      DestinationName: 'db',
      SourceType: 'consul',
      Action: 'allow',
    }
    await server.agent.put('/v1/connect/intentions', intention, 'POST')
  })

  after(async () => {
    await server?.[Symbol.asyncDispose]()
  })

  /** A run of the catalog, over the same file as the runs before. */
  class Run implements AsyncDisposable {
    readonly catalog: RememberedCatalog
    service: CatalogService | undefined
    policies: readonly CatalogPolicy[] = []
    names: readonly string[] | undefined

    constructor() {
      const inner = new ConsulCatalog(
        {
          address: server.address,
          token: token.secret,
          requestTimeout: 10_000,
        },
        silentLog,
      )
      this.catalog = rememberCatalog(inner, {
        file: openStateFile({
          path: join(server.folder, 'catalog.json'),
          format: 'hostmesh-catalog',
          version: CATALOG_STATE_VERSION,
          maxBytes: MAX_CATALOG_STATE_BYTES,
          log: silentLog,
        }),
        datacenter: 'dc1',
      })
      this.catalog.watchService('db', (service) => {
        this.service = service
      })
      this.catalog.watchPolicies(['db'], (policies) => {
        this.policies = policies
      })
      this.catalog.watchServiceList((services) => {
        this.names = services.map(({ name }) => name)
      })
    }

    assertWhole(): void {
      assert.equal(this.service?.clusters[0].endpoints.length, 1)
      assert.equal(this.service?.protocol, 'http')
      assert.equal(this.policies[0]?.intentions[0]?.action, 'allow')
      assert.deepEqual(this.names, ['db'])
    }

    /** What is acted on, of an earlier run. */
    remembered(): string {
      const { services, policies } = this.catalog.remembered()
      return `${services.count} services, ${policies.count} policies`
    }

    async [Symbol.asyncDispose](): Promise<void> {
      await this.catalog[Symbol.asyncDispose]()
    }
  }

  test('a run with rights learns what there is', async () => {
    await using run = new Run()
    // Not taken back at its end, as after a crash.
    await run.catalog.register(
      [
        {
          name: 'db',
          id: 'db',
          target: { ip: '127.0.0.1', port: 5_432 },
          connectPort: undefined,
          selector: undefined,
          capturePort: undefined,
          upstreams: [],
        },
      ],
      15_443,
    )
    await eventually(() => {
      run.assertWhole()
      assert.equal(run.remembered(), '0 services, 0 policies')
    })
  })

  test('a start with a token that sees nothing keeps instances, names and intentions', async () => {
    await server.acl.setPolicy('host', NO_RIGHTS)
    await using run = new Run()
    await eventually(
      () => {
        const problems = run.catalog.health().problems.join('\n')
        assert.match(problems, /lost service:read, so this answer is not accepted/)
        assert.match(problems, /not even itself/)
        assert.match(problems, /not allow reading the intentions/)
      },
      { withinMs: 60_000 },
    )
    run.assertWhole()
    assert.equal(run.remembered(), '1 services, 1 policies')
  })

  test('a start with a token that does not exist any more keeps them too', async () => {
    await server.acl.deleteToken(token)
    await using run = new Run()
    await eventually(
      () => assert.match(run.catalog.health().problems.join('\n'), /ACL not found/),
      { withinMs: 60_000 },
    )
    run.assertWhole()
    assert.equal(run.remembered(), '1 services, 1 policies')
  })

  test('a start with rights again makes all of it live', async () => {
    token = await server.acl.createToken('host', documentedPolicy('db'))
    await using run = new Run()
    await eventually(
      () => {
        run.assertWhole()
        assert.equal(run.remembered(), '0 services, 0 policies')
      },
      { withinMs: 30_000 },
    )
  })
})
