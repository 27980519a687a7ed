/**
 * The smallest mesh in which a connection crosses the wire: web on host a, db on host b, web may reach db.
 */
import { type Mesh, type MeshOptions, startMesh } from './mesh.ts'
import { manual, type RunningService } from './service.ts'
import type { Behavior } from './workload-protocol.ts'

/** A running pair. Disposing it ends the mesh with all its checks. */
export interface Pair extends AsyncDisposable {
  readonly mesh: Mesh
  readonly web: RunningService
  readonly db: RunningService
}

/** Starts the pair with the file catalog; `db` hands its connections to the test unless told otherwise. */
export async function startPair(
  options: Partial<MeshOptions> & { readonly behavior?: Behavior } = {},
): Promise<Pair> {
  const { behavior = manual, ...rest } = options
  await using undo = new AsyncDisposableStack()
  const mesh = undo.use(await startMesh({ hosts: ['a', 'b'], catalog: 'file', ...rest }))
  const web = await mesh.host('a').service('web').start()
  const db = await mesh.host('b').service('db', { listens: 5432 }).start(behavior)
  await mesh.allow('web', 'db')
  await mesh.up()
  const held = undo.move()
  return { mesh, web, db, [Symbol.asyncDispose]: () => held.disposeAsync() }
}
