/**
 * What the tests of vicious peers have in common: host b is attacked from a host without a daemon, while web on host a goes on
 * to call db there. Whatever is done to it, none of their calls fails, its memory stays within bounds, and nothing remains.
 */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { StatusDocument } from '../../src/model/admin.ts'
import { eventually } from '../harness/eventually.ts'
import {
  type FileCatalog,
  issueLeaves,
  TRUST_DOMAIN,
  TUNNEL_PORT,
} from '../harness/file-catalog.ts'
import { MemoryWatch } from '../harness/memory-watch.ts'
import { type Mesh, startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'
import { keepCalling } from '../harness/steady-calls.ts'
import { letLoose, type ViciousMode, type ViciousOutcome } from '../harness/vicious-peer.ts'

const MOST_GROWTH_MIB = 128

/** What is done to the host. */
export interface Attack {
  readonly mode: ViciousMode
  /** The service that it names; `vault` runs there, and nobody may call it. */
  readonly destination: string
  /** Services whose certificates it has. Each attack has its own: what one has done must not be held against the next. */
  readonly callers: readonly string[]
  readonly forMs: number
}

/** What came of it. */
export interface Attacked {
  readonly outcome: ViciousOutcome
  /** Of the attacked host, as soon as it was over. */
  readonly problems: StatusDocument['problems']
}

/** A running mesh of which host b is attacked. Disposing it ends the mesh with all its checks. */
export class AttackedHost implements AsyncDisposable {
  private readonly mesh: Mesh<FileCatalog>
  private readonly web: RunningService

  private constructor(mesh: Mesh<FileCatalog>, web: RunningService) {
    this.mesh = mesh
    this.web = web
  }

  /** Starts it; `prepare` adds what else a test needs, before the daemons run. */
  static async start(
    prepare: (mesh: Mesh<FileCatalog>) => Promise<void> = async () => undefined,
  ): Promise<AttackedHost> {
    await using undo = new AsyncDisposableStack()
    const mesh = undo.use(
      await startMesh({
        hosts: ['a', 'b', 'outside'],
        catalog: 'file',
        daemonless: ['outside'],
        // Limits are a worker's.
        workers: 1,
      }),
    )
    const web = await mesh.host('a').service('web').start()
    await mesh.host('b').service('db', { listens: 5432 }).start()
    await mesh.host('b').service('vault', { listens: 8200 }).start()
    await mesh.allow('web', 'db')
    await prepare(mesh)
    await mesh.up()
    await eventually(() => web.call('db'))
    undo.move()
    return new AttackedHost(mesh, web)
  }

  /** Lets it happen, and checks what holds for every attack; the test judges what came of this one. */
  async suffer(t: TestContext, attack: Attack): Promise<Attacked> {
    const { mesh, web } = this
    const { namespace, daemon } = mesh.host('b')
    const { mode, destination, callers, forMs } = attack
    const certificates: string[] = []
    for (const caller of callers) {
      const folder = join(mesh.folder, caller)
      await issueLeaves(mesh.catalog.caFolder, [caller], folder)
      certificates.push(folder)
    }
    using memory = new MemoryWatch(daemon)
    await using calls = keepCalling(() => web.call('db'))
    const outcome = await letLoose(mesh.host('outside').namespace, {
      mode,
      ip: namespace.ip,
      port: TUNNEL_PORT,
      serverName: `${destination}.default.dc1.internal.${TRUST_DOMAIN}`,
      certificates,
      forMs,
    })
    const { problems } = await daemon.status()
    assert.deepEqual(await calls.failures(), [], 'calls of the other pair failed')
    t.diagnostic(
      `${JSON.stringify(outcome)}; ${calls.answered()} calls of the others; ${memory.course}`,
    )
    assert.ok(calls.answered() > 0)
    assert.ok(memory.grownMiB <= MOST_GROWTH_MIB, memory.course)
    await eventually(async () => {
      assert.equal(await daemon.metric('hostmesh_held_bytes'), 0)
      assert.equal(await daemon.metric('hostmesh_tunnel_streams_active'), 0)
      // At most that of web.
      assert.ok((await daemon.metric('hostmesh_tunnel_sessions_active')) <= 1)
      assert.ok((await daemon.metric('hostmesh_connection_descriptors')) <= 1)
    })
    return { outcome, problems }
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.mesh[Symbol.asyncDispose]()
  }
}
