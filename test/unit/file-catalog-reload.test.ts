/** Claims about src/controlplane/catalog/file/file-catalog.ts on a real file that changes. */
import assert from 'node:assert/strict'
import { mkdtempSync, renameSync, rmSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import type {
  CatalogPolicy,
  CatalogService,
  ListedService,
} from '../../src/controlplane/catalog/catalog.ts'
import { createFileCatalog } from '../../src/controlplane/catalog/file/file-catalog.ts'
import {
  CATALOG_FILE_STATE_VERSION,
  MAX_CATALOG_FILE_STATE_BYTES,
} from '../../src/controlplane/catalog/file/kept-file.ts'
import { MeshError } from '../../src/lib/errors.ts'
import { type Log, silentLog } from '../../src/lib/log.ts'
import { openStateFile, type StateFile } from '../../src/lib/state-file.ts'
import type { LocalService } from '../../src/model/service.ts'
import { eventually, patient } from '../harness/eventually.ts'

const root = mkdtempSync(join(tmpdir(), 'hostmesh-file-catalog-'))
after(() => rmSync(root, { recursive: true, force: true }))

function newPath(): string {
  return join(mkdtempSync(join(root, 'c-')), 'catalog.yaml')
}

function replace(path: string, text: string): void {
  writeFileSync(`${path}.new`, text)
  renameSync(`${path}.new`, path)
}

const db = (...ips: string[]): string =>
  `services:\n  - Name: db\n    Instances:\n${ips
    .map((ip, index) => `      - {Node: host-${index}, Address: ${ip}}\n`)
    .join('')}`

const addressesOf = (service: CatalogService | undefined): string[] | undefined =>
  service?.clusters[0].endpoints.map((endpoint) => endpoint.tunnel.ip)

test('a broken or missing file at start is an error that names every problem', () => {
  const path = newPath()
  writeFileSync(path, 'services: [{Nme: a}]\ndefaultPolicy: maybe\n')
  assert.throws(
    () => createFileCatalog({ path, node: 'a' }, silentLog),
    (thrown) =>
      thrown instanceof MeshError &&
      thrown.code === 'HM_CATALOG_INVALID' &&
      thrown.message.includes(`${path}:1:13: services[0]: Unknown key "Nme"`) &&
      thrown.message.includes(`${path}:2:16: defaultPolicy`),
  )
  assert.throws(
    () => createFileCatalog({ path: `${path}.none`, node: 'a' }, silentLog),
    (thrown) => thrown instanceof MeshError && /no such file/.test(thrown.message),
  )
})

test('the first answer comes by itself, after the watch is returned', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let answer: CatalogService | undefined
  const watch = catalog.watchService('db', (service) => {
    answer = service
  })
  assert.equal(answer, undefined)
  await eventually(() => assert.deepEqual(addressesOf(answer), ['10.0.0.1']))
  watch[Symbol.dispose]()
})

test('a service that the file does not know has no endpoints', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let answer: CatalogService | undefined
  catalog.watchService('other', (service) => {
    answer = service
  })
  await eventually(() => assert.deepEqual(answer?.clusters[0].endpoints, []))
})

test('a file replaced by renaming is seen within a second, again and again', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let answer: CatalogService | undefined
  catalog.watchService('db', (service) => {
    answer = service
  })
  for (let round = 1; round <= 5; round += 1) {
    replace(path, db(`10.0.1.${round}`))
    await eventually(() => assert.deepEqual(addressesOf(answer), [`10.0.1.${round}`]), {
      withinMs: 1_000,
    })
  }
})

test('folder events make changes known faster than polling can', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let answer: CatalogService | undefined
  catalog.watchService('db', (service) => {
    answer = service
  })
  const startedAt = performance.now()
  for (let round = 1; round <= 6; round += 1) {
    replace(path, db(`10.0.1.${round}`))
    await eventually(() => assert.deepEqual(addressesOf(answer), [`10.0.1.${round}`]))
  }
  // By polling alone each change but the first waits for the next tick: 5 x 750 ms.
  assert.ok(performance.now() - startedAt < patient(3_000))
})

test('a file that vanishes and returns unchanged is well again', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  renameSync(path, `${path}.away`)
  await eventually(() => assert.match(catalog.health().problems[0]?.message ?? '', /no such file/))
  renameSync(`${path}.away`, path)
  await eventually(() => assert.deepEqual(catalog.health().problems, []))
})

test('a change that folder events do not show is seen by polling', async () => {
  const target = newPath()
  const other = newPath()
  const path = newPath()
  writeFileSync(target, db('10.0.0.1'))
  writeFileSync(other, db('10.0.0.2'))
  symlinkSync(target, path)
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let answer: CatalogService | undefined
  catalog.watchService('db', (service) => {
    answer = service
  })
  await eventually(() => assert.deepEqual(addressesOf(answer), ['10.0.0.1']))
  // The link's own folder stays as it is: only its target changes.
  replace(target, db('10.0.0.3'))
  await eventually(() => assert.deepEqual(addressesOf(answer), ['10.0.0.3']), { withinMs: 2_000 })
})

test('a second write of equal length right after the first is seen', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let answer: CatalogService | undefined
  catalog.watchService('db', (service) => {
    answer = service
  })
  await eventually(() => assert.deepEqual(addressesOf(answer), ['10.0.0.1']))
  writeFileSync(path, db('10.0.0.2'))
  await eventually(() => assert.deepEqual(addressesOf(answer), ['10.0.0.2']))
  writeFileSync(path, db('10.0.0.3'))
  await eventually(() => assert.deepEqual(addressesOf(answer), ['10.0.0.3']))
})

test('a watch hears of changes of its own service only', async () => {
  const path = newPath()
  const two = (ip: string): string =>
    `${db('10.0.0.1')}  - Name: web\n    Instances: [{Node: b, Address: ${ip}}]\n`
  writeFileSync(path, two('10.0.0.2'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let dbAnswers = 0
  let web: CatalogService | undefined
  catalog.watchService('db', () => {
    dbAnswers += 1
  })
  catalog.watchService('web', (service) => {
    web = service
  })
  await eventually(() => assert.equal(dbAnswers, 1))
  replace(path, two('10.0.0.3'))
  await eventually(() => assert.deepEqual(addressesOf(web), ['10.0.0.3']))
  assert.equal(dbAnswers, 1)
})

test('a file that breaks changes nothing, is named with line and column, and is forgiven when mended', async () => {
  const path = newPath()
  writeFileSync(path, `${db('10.0.0.1')}defaultPolicy: allow\n`)
  const logged: unknown[] = []
  const log: Log = { ...silentLog, error: (_, fields) => logged.push(fields?.['problems']) }
  await using catalog = createFileCatalog({ path, node: 'a' }, log)
  const answers: CatalogService[] = []
  catalog.watchService('db', (service) => answers.push(service))
  await eventually(() => assert.equal(answers.length, 1))
  assert.deepEqual(catalog.health().problems, [])

  replace(path, `${db('10.0.0.2')}defaultPolicy: alow\n`)
  const problem = `${path}:5:16: defaultPolicy: Must be one of allow, deny, got "alow"; did you mean "allow"?`
  await eventually(() =>
    assert.deepEqual(
      catalog.health().problems.map(({ code, message }) => ({ code, message })),
      [{ code: 'HM_CATALOG_FILE_BROKEN', message: problem }],
    ),
  )
  assert.deepEqual(logged, [[problem]])
  assert.equal(answers.length, 1)

  unlinkSync(path)
  await eventually(() => assert.match(catalog.health().problems[0]?.message ?? '', /no such file/))
  const goodAt = catalog.health().lastGoodAtMs
  assert.equal(answers.length, 1)

  writeFileSync(path, db('10.0.0.3'))
  await eventually(() => assert.deepEqual(addressesOf(answers.at(-1)), ['10.0.0.3']))
  assert.deepEqual(catalog.health().problems, [])
  assert.ok((catalog.health().lastGoodAtMs ?? 0) > (goodAt ?? Infinity))
})

test('an emptied file does not empty the mesh', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  const answers: CatalogService[] = []
  catalog.watchService('db', (service) => answers.push(service))
  await eventually(() => assert.equal(answers.length, 1))
  writeFileSync(path, '')
  await eventually(() =>
    assert.match(catalog.health().problems[0]?.message ?? '', /The file is empty/),
  )
  assert.equal(answers.length, 1)
})

test('policies and the list of services are followed', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let policies: readonly CatalogPolicy[] = []
  let list: readonly ListedService[] = []
  catalog.watchPolicies(['db', 'web'], (answer) => {
    policies = answer
  })
  catalog.watchServiceList((answer) => {
    list = answer
  })
  await eventually(() => assert.deepEqual(list, [{ name: 'db', virtualIps: [] }]))
  assert.deepEqual(policies, [
    { destination: 'db', intentions: [], defaultPolicy: 'deny' },
    { destination: 'web', intentions: [], defaultPolicy: 'deny' },
  ])
  replace(
    path,
    `services: [{Name: web}, {Name: db, VirtualAddresses: [240.0.0.7]}]\nintentions: [{SourceName: web, DestinationName: db, Action: allow}]\n`,
  )
  await eventually(() =>
    assert.deepEqual(list, [
      { name: 'db', virtualIps: ['240.0.0.7'] },
      { name: 'web', virtualIps: [] },
    ]),
  )
  assert.deepEqual(policies[0]?.intentions, [
    { source: 'web', destination: 'db', action: 'allow', precedence: 9 },
  ])
  assert.deepEqual(policies[1]?.intentions, [])
})

test('a closed watch and a disposed catalog say nothing more', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  const catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let closedAnswers = 0
  let openAnswers = 0
  const closed = catalog.watchService('db', () => {
    closedAnswers += 1
  })
  closed[Symbol.dispose]()
  catalog.watchService('db', () => {
    openAnswers += 1
  })
  await eventually(() => assert.equal(openAnswers, 1))
  replace(path, db('10.0.0.2'))
  await eventually(() => assert.equal(openAnswers, 2))
  assert.equal(closedAnswers, 0)
  // A second catalog on the same file shows when the first would have seen the change.
  await using witness = createFileCatalog({ path, node: 'a' }, silentLog)
  let seen: CatalogService | undefined
  witness.watchService('db', (service) => {
    seen = service
  })
  await catalog[Symbol.asyncDispose]()
  replace(path, db('10.0.0.3'))
  await eventually(() => assert.deepEqual(addressesOf(seen), ['10.0.0.3']))
  assert.equal(openAnswers, 2)
})

test('an intention for a service that is not listed is a warning until it is', async () => {
  const path = newPath()
  const intention = 'intentions: [{SourceName: web, DestinationName: ledger, Action: allow}]\n'
  writeFileSync(path, `services: [{Name: db}]\n${intention}`)
  await using catalog = createFileCatalog({ path, node: 'host-0' }, silentLog)
  assert.match(catalog.health().warnings?.join() ?? '', /web -> ledger is for a service/)
  assert.deepEqual(catalog.health().problems, [])
  replace(path, `services: [{Name: ledger}]\n${intention}`)
  await eventually(() => assert.deepEqual(catalog.health().warnings, []))
})

test('a service of this host that the file lacks, or has at another port, is named', async () => {
  const path = newPath()
  writeFileSync(path, db('10.0.0.1'))
  const local = (name: string): LocalService => ({
    name,
    id: name,
    target: { ip: '127.0.0.1', port: 1 },
    selector: undefined,
    capturePort: undefined,
    connectPort: undefined,
    upstreams: [],
  })
  await using catalog = createFileCatalog({ path, node: 'host-0' }, silentLog)
  await catalog.register(
    [local('db'), local('web'), { ...local('caller'), target: undefined }],
    15_443,
  )
  assert.equal(catalog.health().problems.length, 1)
  assert.match(
    catalog.health().problems[0]?.message ?? '',
    /web of this host .* no instance with Node host-0 and ID web/,
  )
  await catalog.register([local('db')], 20_000)
  assert.match(
    catalog.health().problems[0]?.message ?? '',
    /Port 15443 .* the tunnel port is 20000/,
  )
  await catalog.deregister()
  assert.deepEqual(catalog.health().problems, [])
})

/** What a daemon keeps for the next one, beside the file. */
function stateOf(path: string): StateFile {
  return openStateFile({
    path: `${path}.kept`,
    format: 'hostmesh-catalog-file',
    version: CATALOG_FILE_STATE_VERSION,
    maxBytes: MAX_CATALOG_FILE_STATE_BYTES,
    log: silentLog,
  })
}

/** A run of a daemon over a file, from its start to its end. */
async function run(
  path: string,
  during: (catalog: ReturnType<typeof createFileCatalog>) => Promise<void>,
  options: { readonly isStrict?: boolean } = {},
): Promise<void> {
  await using state = stateOf(path)
  await using catalog = createFileCatalog({ path, node: 'a', state, ...options }, silentLog)
  await during(catalog)
}

const at = (port: number): string =>
  `services: [{Name: db, Instances: [{Node: b, Address: 10.0.0.2, ServicePort: ${port}}]}]\n`

/** Waits until the list has exactly these addresses of db, those that are gone in brackets. */
async function listsDbAt(
  catalog: ReturnType<typeof createFileCatalog>,
  ...wanted: readonly string[]
): Promise<void> {
  let list: readonly ListedService[] = []
  const watch = catalog.watchServiceList((answer) => {
    list = answer
  })
  await eventually(() => {
    const addresses = list.find(({ name }) => name === 'db')?.addresses ?? []
    assert.deepEqual(
      addresses.map(({ port, goneSinceMs }) =>
        goneSinceMs === undefined ? String(port) : `(${port})`,
      ),
      wanted,
    )
  })
  watch[Symbol.dispose]()
}

test('what the file lists no more stays an address of its service, over restarts too', async () => {
  const path = newPath()
  writeFileSync(path, at(8080))
  await run(path, async (catalog) => {
    await listsDbAt(catalog, '8080')
    replace(path, at(8081))
    await listsDbAt(catalog, '(8080)', '8081')
    let answer: CatalogService | undefined
    catalog.watchService('db', (service) => {
      answer = service
    })
    await eventually(() => assert.equal(answer?.addresses.length, 2))
    assert.deepEqual(
      answer?.clusters[0].endpoints.map(({ application }) => application?.port),
      [8081],
    )
  })
  await run(path, async (catalog) => {
    await listsDbAt(catalog, '(8080)', '8081')
    replace(path, 'services: []\n')
    await listsDbAt(catalog, '(8080)', '(8081)')
  })
  await run(path, async (catalog) => {
    await listsDbAt(catalog, '(8080)', '(8081)')
    replace(path, at(8080))
    await listsDbAt(catalog, '8080', '(8081)')
  })
})

test('what was changed while no daemon ran is noticed at the start, and so is another path', async () => {
  const path = newPath()
  writeFileSync(path, at(8080))
  await run(path, (catalog) => listsDbAt(catalog, '8080'))
  replace(path, 'services: []\n')
  await run(path, (catalog) => listsDbAt(catalog, '(8080)'))
  const other = `${path}.other`
  writeFileSync(other, at(9090))
  await using state = stateOf(path)
  await using catalog = createFileCatalog({ path: other, node: 'a', state }, silentLog)
  await listsDbAt(catalog, '(8080)', '9090')
})

test('a service that is gone is listed as gone, and an intention for it is a warning', async () => {
  const path = newPath()
  const rest = 'intentions: [{SourceName: web, DestinationName: db, Action: allow}]\n'
  writeFileSync(path, at(8080) + rest)
  await using catalog = createFileCatalog({ path, node: 'a' }, silentLog)
  let list: readonly ListedService[] = []
  catalog.watchServiceList((answer) => {
    list = answer
  })
  await eventually(() => assert.equal(list[0]?.goneSinceMs, undefined))
  replace(path, `services: [{Name: web}]\n${rest}`)
  await eventually(() => assert.equal(typeof list[0]?.goneSinceMs, 'number'))
  assert.deepEqual(
    list.map(({ name }) => name),
    ['db', 'web'],
  )
  assert.match(catalog.health().warnings?.join() ?? '', /web -> db is for a service/)
})

test('at a start with a broken file the last good one is used, and the problem has its place', async () => {
  const path = newPath()
  writeFileSync(path, `${at(8080)}defaultPolicy: allow\n`)
  await run(path, (catalog) => listsDbAt(catalog, '8080'))
  for (const breakIt of [
    (): void => replace(path, 'services: [\n'),
    (): void => unlinkSync(path),
    (): void => replace(path, ''),
  ]) {
    breakIt()
    await run(path, async (catalog) => {
      await listsDbAt(catalog, '8080')
      const [policy] = await new Promise<readonly CatalogPolicy[]>((resolve) => {
        catalog.watchPolicies(['db'], resolve)
      })
      assert.equal(policy?.defaultPolicy, 'allow')
      const { problems, lastGoodAtMs } = catalog.health()
      assert.equal(problems[0]?.code, 'HM_CATALOG_FILE_BROKEN')
      assert.ok((problems[0]?.hint ?? '').includes('Correct the file'))
      assert.ok(lastGoodAtMs !== undefined && lastGoodAtMs < performance.now())
    })
  }
  replace(path, 'services: [\n')
  await run(path, async (catalog) => {
    assert.match(catalog.health().problems[0]?.message ?? '', /catalog\.yaml:2:1: /)
    replace(path, at(8081))
    await listsDbAt(catalog, '(8080)', '8081')
    assert.deepEqual(catalog.health().problems, [])
  })
})

test('a broken file is an error where nothing good was kept of it, and for a reload', async () => {
  const path = newPath()
  writeFileSync(path, 'services: [\n')
  const start = (isStrict?: boolean): Promise<void> =>
    run(path, async () => undefined, isStrict === undefined ? {} : { isStrict })
  await assert.rejects(start(), { code: 'HM_CATALOG_INVALID' })
  replace(path, at(8080))
  await run(path, (catalog) => listsDbAt(catalog, '8080'))
  replace(path, 'services: [\n')
  await assert.rejects(start(true), { code: 'HM_CATALOG_INVALID' })
  await start()
  const other = `${path}.other`
  writeFileSync(other, 'services: [\n')
  await using state = stateOf(path)
  assert.throws(() => createFileCatalog({ path: other, node: 'a', state }, silentLog), {
    code: 'HM_CATALOG_INVALID',
  })
})
