/**
 * Claims about src/daemon/memory.ts: what a start asks and waits for, with real files and an agent that
 * answers as the test says.
 */
import assert from 'node:assert/strict'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, test } from 'node:test'
import { type Config, configSchema } from '../../src/config/schema.ts'
import type { Catalog, CatalogService } from '../../src/controlplane/catalog/catalog.ts'
import { HostState } from '../../src/daemon/memory.ts'
import { silentLog } from '../../src/lib/log.ts'
import { catalogService } from '../harness/builders.ts'
import { eventually, within } from '../harness/eventually.ts'

describe('the memory of a daemon', () => {
  let folder: string

  beforeEach(() => {
    folder = join(mkdtempSync(join(tmpdir(), 'hostmesh-memory-')), 'state')
  })

  afterEach(() => {
    rmSync(join(folder, '..'), { recursive: true, force: true })
  })

  function config(directory = folder): Config {
    return configSchema.parse({
      catalog: { kind: 'consul' },
      certificates: { kind: 'consul' },
      state: { directory },
    })
  }

  /** What a run that starts with this agent takes for the name of the host. */
  async function nameWith(readAgentSelf: () => Promise<{ nodeName: string }>): Promise<string> {
    await using memory = new HostState(config(), silentLog)
    return memory.nodeName({ description: 'consul http://one', readAgentSelf }, 'fallback')
  }

  test('the name of the host is asked, else remembered, else the one of the machine', async () => {
    const away = (): Promise<never> => Promise.reject(new Error('away'))
    assert.equal(await nameWith(away), 'fallback')
    assert.equal(await nameWith(async () => ({ nodeName: 'host-7' })), 'host-7')
    assert.equal(await nameWith(away), 'host-7')
    assert.equal(await nameWith(async () => ({ nodeName: 'host-8' })), 'host-8')
    await using memory = new HostState(config(), silentLog)
    const other = { description: 'consul http://other', readAgentSelf: away }
    assert.equal(await memory.nodeName(other, 'fallback'), 'fallback', 'that is another Consul')
  })

  test('an agent that hangs does not hold up a start that has a name, and may correct it', async () => {
    await nameWith(async () => ({ nodeName: 'host-7' }))
    await using memory = new HostState(config(), silentLog)
    const { promise, resolve } = Promise.withResolvers<{ nodeName: string }>()
    const asked = { description: 'consul http://one', readAgentSelf: () => promise }
    const name = within(2_000, 'a name', memory.nodeName(asked, 'fallback'))
    // The timer of a wait that may be called off does not keep a test process alive by itself.
    const alive = setInterval(() => undefined, 100)
    assert.equal(await name, 'host-7')
    clearInterval(alive)
    assert.deepEqual(memory.status().problems, [])
    resolve({ nodeName: 'renamed' })
    await eventually(() =>
      assert.match(memory.status().problems.join(), /calls this host renamed.*restart it/),
    )
  })

  test('virtual addresses are kept for the next run, in files for nobody else', async () => {
    {
      await using memory = new HostState(config(), silentLog)
      assert.deepEqual(memory.virtualAddresses(), new Map())
      memory.keepVirtualAddresses(new Map([['db', ['240.1.2.3', 'fd00::1']]]))
    }
    assert.equal(statSync(folder).mode & 0o777, 0o700)
    for (const name of readdirSync(folder))
      assert.equal(statSync(join(folder, name)).mode & 0o777, 0o600)
    await using memory = new HostState(config(), silentLog)
    assert.deepEqual(memory.virtualAddresses(), new Map([['db', ['240.1.2.3', 'fd00::1']]]))
    const path = join(folder, 'virtual-addresses.json')
    const before = readFileSync(path)
    memory.keepVirtualAddresses(memory.virtualAddresses())
    await memory[Symbol.asyncDispose]()
    assert.deepEqual(readFileSync(path), before, 'the same addresses are not written again')
  })

  test('answers older than state.maxStale are called stale, remembered or not', async () => {
    const HOUR_MS = 3_600_000
    const silent = { [Symbol.dispose]: () => undefined }
    let goodAtMs: number | undefined
    let give: (service: CatalogService) => void = () => assert.fail('not watched')
    const inner: Catalog = {
      description: 'consul http://one',
      watchService: (_name, onChange) => {
        give = onChange
        return silent
      },
      watchServiceList: () => silent,
      watchPolicies: () => silent,
      register: async () => undefined,
      deregister: async () => undefined,
      health: () => ({ lastGoodAtMs: goodAtMs, problems: [] }),
      [Symbol.asyncDispose]: async () => undefined,
    }
    const states = (memory: HostState): string =>
      memory
        .status()
        .parts.map(({ state, remembered }) => `${state} ${remembered}`)
        .join(', ')
    {
      await using memory = new HostState(config(), silentLog)
      await using catalog = memory.catalog(inner)
      catalog.watchService('db', () => undefined)
      assert.equal(states(memory), 'none 0, none 0')
      goodAtMs = performance.now()
      give(catalogService('db'))
      assert.equal(states(memory), 'live 0, none 0')
      goodAtMs -= 2 * HOUR_MS
      assert.equal(states(memory), 'stale 0, none 0')
    }
    goodAtMs = undefined
    await using memory = new HostState(config(), silentLog)
    await using catalog = memory.catalog(inner)
    catalog.watchService('db', () => undefined)
    assert.equal(states(memory), 'stale 1, none 0')
    const age = memory.status().parts[0]?.ageMs ?? 0
    assert.ok(age >= 2 * HOUR_MS && age < 2.1 * HOUR_MS, String(age))
    goodAtMs = performance.now()
    give(catalogService('db'))
    assert.equal(states(memory), 'live 0, none 0')
  })

  test('a folder that cannot be made costs the memory and nothing else', async () => {
    const impossible = join(folder, 'a/b')
    await using memory = new HostState(config(impossible), silentLog)
    memory.keepVirtualAddresses(new Map([['db', ['240.1.2.3']]]))
    const agent = {
      description: 'consul http://one',
      readAgentSelf: async () => ({ nodeName: 'host-7' }),
    }
    assert.equal(await memory.nodeName(agent, 'fallback'), 'host-7')
    const { problems, directory } = memory.status()
    assert.equal(directory, impossible)
    assert.equal(problems.length, 1)
    assert.match(problems[0] ?? '', /Cannot make .*a\/b/)
    await memory[Symbol.asyncDispose]()
    assert.ok(!existsSync(folder))
  })
})
