/**
 * The nft that owns tables: one for all, told everything again when it is replaced or has ended.
 */
import assert from 'node:assert/strict'
import { ChildProcess } from 'node:child_process'
import { PassThrough } from 'node:stream'
import { describe, test } from 'node:test'
import { HeldGuard } from '../../src/controlplane/capture/held-guard.ts'
import { TableOwner } from '../../src/controlplane/capture/table-owner.ts'

const TEXT = (table: string): string => `table inet ${table} {\n  set known4 {\n  }\n}\n`

/** An nft that only remembers what it was told. */
class ScriptedNft extends ChildProcess {
  readonly told: string[] = []
  isEnded = false
  override readonly stdin = new PassThrough()
  override readonly stderr = new PassThrough()

  constructor() {
    super()
    this.stdin.on('data', (chunk: Buffer) => this.told.push(chunk.toString()))
    this.stdin.on('end', () => (this.isEnded = true))
  }

  override unref(): void {
    // There is no process to let go.
  }
}

function scene(): {
  owner: TableOwner
  started: ScriptedNft[]
  failures: string[]
  guard: (name: string) => HeldGuard
} {
  const started: ScriptedNft[] = []
  const failures: string[] = []
  const owner = new TableOwner(() => {
    const nft = new ScriptedNft()
    started.push(nft)
    return nft
  })
  const guard = (name: string): HeldGuard =>
    new HeldGuard(owner, (words) => failures.push(`${name}: ${words}`), name)
  return { owner, started, failures, guard }
}

const holding = (elements: readonly string[] = []) => {
  const set = { kind: 'set' as const, name: 'known4', elements }
  return (table: string) => ({ text: TEXT(table), sets: [{ ...set, table }] })
}

const settle = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

describe('the owner of tables', () => {
  test('is one process for all tables, and ends with the last', async () => {
    const { started, guard } = scene()
    const [ports, mesh] = [guard('ports'), guard('mesh')]
    ports.update(holding())
    mesh.update(holding(['10.0.0.1 . 80']))
    await settle()
    const [nft] = started
    assert.equal(started.length, 1)
    const told = nft?.told.join('') ?? ''
    assert.match(told, /add table inet ports \{ flags owner; \}/)
    assert.match(told, /table inet mesh \{ flags owner;/)
    assert.match(told, /add element inet mesh known4 \{ 10\.0\.0\.1 \. 80 \}/)
    mesh[Symbol.dispose]()
    await settle()
    assert.match(nft?.told.at(-1) ?? '', /delete table inet mesh/)
    assert.equal(nft?.isEnded, false)
    ports[Symbol.dispose]()
    await settle()
    assert.equal(nft?.isEnded, true)
  })

  test('an end is told to all who had tables, and the next update begins again', () => {
    const { started, failures, guard } = scene()
    const [ports, mesh] = [guard('ports'), guard('mesh')]
    ports.update(holding())
    mesh.update(holding())
    started[0]?.emit('exit', 1, null)
    assert.deepEqual(failures, ['ports: nft has ended: 1', 'mesh: nft has ended: 1'])
    assert.deepEqual([ports.isHeld, mesh.isHeld], [false, false])
    mesh.update(holding())
    assert.deepEqual([ports.isHeld, mesh.isHeld], [false, true])
    assert.equal(started.length, 2)
  })

  test('is replaced after many changes, and not for what it was told first', async () => {
    const { owner, started, guard } = scene()
    const [ports, mesh] = [guard('ports'), guard('mesh')]
    ports.update(holding())
    const many = Array.from({ length: 200_000 }, (_, index) => `10.0.0.1 . ${index}`)
    mesh.update(holding(many))
    assert.equal(owner.mustBeReplaced, false)
    // Each of them adds what the one before has deleted.
    for (let turn = 0; turn < 4 && !owner.mustBeReplaced; turn += 1) {
      mesh.update(holding(many.slice(0, 50_000)))
      mesh.update(holding(many))
    }
    assert.equal(owner.mustBeReplaced, true)
    owner.replace()
    assert.equal(owner.mustBeReplaced, false)
    await settle()
    const told = started[1]?.told.join('') ?? ''
    assert.match(told, /add table inet ports_2 /)
    assert.match(told, /add element inet mesh_2 known4 \{ 10\.0\.0\.1 \. 0,/)
    // The old one keeps its tables until the new one surely has its own.
    assert.equal(started[0]?.isEnded, false)
    mesh.update(holding(['10.0.0.2 . 1']))
    await settle()
    assert.match(
      started[1]?.told.join('') ?? '',
      /add element inet mesh_2 known4 \{ 10\.0\.0\.2 \. 1 \}/,
    )
  })
})
