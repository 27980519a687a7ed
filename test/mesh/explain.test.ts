/**
 * What `hostmesh explain` says is what happens: on a real mesh its verdict, its entry and its intention agree
 * with the call that is made next, live and from a file.
 */
import assert from 'node:assert/strict'
import { readFile, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { CaptureState } from '../../src/daemon/capture-operations.ts'
import type { ConnectionsDocument, RefusedDocument } from '../../src/model/admin.ts'
import type { Explanation } from '../../src/model/explanation.ts'
import type { HostFacts } from '../../src/model/facts.ts'
import { eventually } from '../harness/eventually.ts'
import type { Host } from '../harness/host.ts'
import { startMesh } from '../harness/mesh.ts'
import type { RunningService } from '../harness/service.ts'
import { manual } from '../harness/service.ts'

/** Runs the command as an operator would; the exit code and the document must agree. */
async function explained(host: Host, ...words: string[]): Promise<Explanation> {
  const run = await host.daemon.cli('explain', ...words, '-o', 'json')
  const explanation = JSON.parse(run.stdout) as Explanation
  const expected = { allowed: 0, unknownCaller: 5, unknownService: 5 } as Record<string, number>
  assert.equal(run.code, expected[explanation.verdict] ?? 1, explanation.summary)
  return explanation
}

function station(explanation: Explanation, name: string): Explanation['stations'][number] {
  const found = explanation.stations.find((each) => each.name === name)
  assert.ok(found, `no station ${name}`)
  return found
}

for (const catalog of ['file', 'consul'] as const) {
  test(`with the ${catalog} catalog`, async (t) => {
    await using mesh = await startMesh({ hosts: ['a', 'b'], catalog, workers: 2 })
    const [a, b] = [mesh.host('a'), mesh.host('b')]
    const web = await a.service('web', { upstreams: { db: 9001, vault: 9002 } }).start()
    const batch = await a.service('batch', { identity: 'cgroup' }).start()
    await a.service('cache', { listens: 6379 }).start()
    const db = await b.service('db', { listens: 5432 }).start()
    await b.service('vault', { listens: 8200 }).start()
    const chat = await b.service('chat', { listens: 7000 }).start(manual)
    await mesh.allow('web', '*')
    await mesh.deny('web', 'vault')
    await mesh.up()
    await eventually(() => web.call('db'))

    /** Asks first, then calls, and returns what was said once the two agree. */
    const agreed = async (
      caller: RunningService,
      to: string,
      call: () => Promise<unknown>,
    ): Promise<Explanation> => {
      const explanation = await explained(a, '--from', caller.service.name, '--to', to)
      const outcome = await call().then(
        () => 'allowed',
        () => 'refused',
      )
      assert.equal(
        explanation.verdict === 'allowed' ? 'allowed' : 'refused',
        outcome,
        `${caller.service.name} -> ${to}: ${explanation.summary}`,
      )
      return explanation
    }

    await t.test('a captured virtual address: allowed by the wildcard that it names', async () => {
      const { ip } = await mesh.virtualAddress('db', a)
      for (const to of ['db', 'db.mesh', 'db.virtual.consul:5432', `${ip}:5432`]) {
        const said = await agreed(web, to, () => web.call('db'))
        assert.equal(said.verdict, 'allowed')
        assert.equal(said.service, 'db')
        assert.equal(said.entry?.kind, 'captured')
        assert.equal(said.entry?.address, `${ip}:5432`)
        assert.match(
          said.entry?.rules.at(-1) ?? '',
          new RegExp(`by user ${web.service.uid}: divert to port \\d+`),
        )
        assert.deepEqual(said.policy?.intention, {
          source: 'web',
          destination: '*',
          action: 'allow',
          precedence: 6,
        })
        assert.equal(said.policy?.decidedAt, 'destination')
        assert.match(said.expectedSpiffeId ?? '', /\/svc\/db$/)
        assert.equal(said.tunnels[0]?.peerAddress, `${b.namespace.ip}:15443`)
      }
    })

    await t.test('the rule that it names is a rule in the kernel', async () => {
      const said = await explained(a, '--from', 'batch', '--to', 'db')
      const { stdout } = await a.daemon.command('capture', 'show', '-o', 'json')
      const port = said.entry?.port ?? 0
      const kernel = (JSON.parse(stdout) as CaptureState).rules.map(({ chain }) => chain)
      assert.ok(kernel.includes(`caller_${port}`), `no chain for port ${port}`)
      assert.equal(said.entry?.rules.length, 1)
      assert.match(said.entry?.rules.at(-1) ?? '', /by cgroup \S+: divert to port/)
    })

    await t.test('the address of an instance: captured by the set, and pinned', async () => {
      const to = `${b.namespace.ip}:5432`
      const said = await agreed(web, to, () => web.callAddress(b.namespace.ip, 5432))
      assert.equal(said.verdict, 'allowed')
      assert.match(said.entry?.rules.join('\n') ?? '', /to a mesh address/)
      assert.match(station(said, 'endpoint').summary, /this very instance/)
    })

    await t.test('an upstream port: no rule, the service by name', async () => {
      const said = await agreed(web, '127.0.0.1:9001', () => web.callPort(9001))
      assert.equal(said.entry?.kind, 'upstream')
      assert.equal(said.service, 'db')
      assert.deepEqual(said.entry?.rules, [])
    })

    await t.test('a denied pair is denied by the intention that it names', async () => {
      const said = await agreed(web, 'vault', () => web.call('vault'))
      assert.equal(said.verdict, 'denied')
      assert.deepEqual(said.policy?.intention, {
        source: 'web',
        destination: 'vault',
        action: 'deny',
        precedence: 9,
      })
      assert.match(station(said, 'policy').details.join(), /web -> \* allow \(precedence 6\)/)
      await agreed(web, '127.0.0.1:9002', () => web.callPort(9002))
    })

    await t.test('the reason is the one with which the destination refuses', async () => {
      const said = await agreed(web, 'vault', () => web.call('vault'))
      const { refused } = JSON.parse(
        (await b.daemon.cli('connections', '--refused', '-o', 'json')).stdout,
      ) as RefusedDocument
      const reason = refused.find(({ destination }) => destination === 'vault')?.reason ?? ''
      assert.ok(
        reason.endsWith(said.policy?.reason ?? 'nothing'),
        `${reason} / ${said.policy?.reason}`,
      )
    })

    await t.test(
      'without an intention of its own a pair is denied by what holds for all',
      async () => {
        const said = await agreed(batch, 'db', () => batch.call('db'))
        assert.equal(said.verdict, 'denied')
        // The harness gives Consul, whose default allows without ACLs, a rule in place of the default.
        if (catalog === 'file')
          assert.match(said.policy?.reason ?? '', /the default policy says deny/)
        assert.equal(said.policy?.intention?.precedence ?? 0, catalog === 'file' ? 0 : 5)
      },
    )

    await t.test('the same host: decided here, without tunnel and certificate', async () => {
      const said = await agreed(web, 'cache', () => web.call('cache'))
      assert.equal(said.policy?.decidedAt, 'here')
      assert.equal(station(said, 'tunnel').mark, 'none')
      assert.equal(said.expectedSpiffeId, null)
      assert.match(station(said, 'delivery').summary, /127\.0\.0\.1:6379/)
    })

    await t.test('the destination says the same of its own part', async () => {
      const said = await explained(b, '--from', 'web', '--to', 'vault')
      assert.equal(said.verdict, 'denied')
      assert.equal(said.policy?.decidedAt, 'here')
      assert.equal((await explained(b, '--from', 'web', '--to', 'db')).verdict, 'allowed')
    })

    await t.test('an address of no service goes past the mesh', async () => {
      const said = await explained(a, '--from', 'web', '--to', `${b.namespace.ip}:9999`)
      assert.equal(said.verdict, 'uncaptured')
      assert.equal(
        (await explained(a, '--from', 'web', '--to', 'nosuch')).verdict,
        'unknownService',
      )
      assert.equal((await explained(a, '--from', 'nosuch', '--to', 'db')).verdict, 'unknownCaller')
    })

    await t.test('a live connection names its endpoint and its peer, on both hosts', async () => {
      const [near, far] = await web.connectTo(chat)
      await far.write('hello')
      assert.equal(await near.read(5), 'hello')
      const open = async (host: Host): Promise<ConnectionsDocument['connections'][number]> => {
        const { connections } = await host.daemon.connections()
        const found = connections.find(({ destination }) => destination === 'chat')
        assert.ok(found)
        return found
      }
      const out = await open(a)
      const outbound = await explained(a, '--connection', out.id)
      assert.equal(outbound.connection, out.id)
      assert.match(station(outbound, 'endpoint').summary, /b\/chat/)
      assert.equal(outbound.tunnels.length, 1)
      assert.equal(outbound.tunnels[0]?.peerAddress, `${b.namespace.ip}:15443`)
      assert.match(outbound.tunnels[0]?.peerSpiffeId ?? '', /\/svc\/chat$/)
      assert.match(station(outbound, 'connection').details.join(), /5 received/)
      const inbound = await explained(b, '--connection', (await open(b)).id)
      assert.match(station(inbound, 'delivery').summary, /127\.0\.0\.1:7000/)
      assert.match(inbound.tunnels[0]?.peerSpiffeId ?? '', /\/svc\/web$/)
      assert.ok(inbound.tunnels[0]?.peerAddress.startsWith(`${a.namespace.ip}:`))
      await near.end()
      await far.end()
      await eventually(async () => {
        const gone = await a.daemon.cli('explain', '--connection', out.id)
        assert.equal(gone.code, 5)
        assert.match(gone.stderr, /not open/)
      })
    })

    await t.test(
      'a refused connection is explained by its id, with what it ended with',
      async () => {
        await assert.rejects(web.call('vault'))
        const list = JSON.parse(
          (await a.daemon.cli('connections', '--refused', '-o', 'json')).stdout,
        ) as RefusedDocument
        const refused = list.refused.find(({ destination }) => destination === 'vault')
        assert.ok(refused)
        assert.equal(refused.flag, 'DENY')
        const said = await explained(a, '--connection', refused.id)
        assert.equal(said.verdict, 'denied')
        assert.match(station(said, 'connection').summary, /with DENY/)
        assert.equal(said.policy?.intention?.destination, 'vault')
      },
    )

    await t.test(
      'a file says what the daemon said, without a daemon, and holds no key',
      async () => {
        const file = join(mesh.folder, 'facts.json')
        const written = await a.daemon.cli('snapshot', '-o', file)
        assert.equal(written.code, 0, written.stderr)
        assert.equal((await stat(file)).mode & 0o777, 0o600)
        const text = await readFile(file, 'utf8')
        assert.doesNotMatch(text, /PRIVATE|BEGIN|privateKey/i)
        const facts = JSON.parse(text) as HostFacts
        assert.deepEqual(facts.certificates.leaves.map(({ service }) => service).toSorted(), [
          'batch',
          'cache',
          'web',
        ])
        const pairs = [
          ['web', 'db'],
          ['web', 'vault'],
          ['batch', 'db'],
          ['web', '127.0.0.1:9001'],
          ['web', `${b.namespace.ip}:5432`],
          ['web', `${b.namespace.ip}:9999`],
          ['web', 'cache'],
          ['nosuch', 'db'],
        ] as const
        const compare = async ([from, to]: readonly [string, string]): Promise<void> => {
          const live = await explained(a, '--from', from, '--to', to)
          // In another namespace, where no daemon is.
          const run = await b.daemon.command(
            'explain',
            '--snapshot',
            file,
            '--from',
            from,
            '--to',
            to,
            '--output=json',
            '--addr=unix:///nonexistent',
          )
          const offline = JSON.parse(run.stdout) as Explanation
          const comparable = ({
            verdict,
            summary,
            entry,
            policy,
            service,
          }: Explanation): object => ({
            verdict,
            summary,
            entry,
            policy,
            service,
          })
          assert.deepEqual(comparable(offline), comparable(live), `${from} -> ${to}`)
          assert.deepEqual(
            offline.endpoints.map(({ endpoint, excluded }) => [endpoint, excluded]),
            live.endpoints.map(({ endpoint, excluded }) => [endpoint, excluded]),
          )
        }
        await Promise.all(pairs.map(compare))
      },
    )

    await t.test(
      'a connection that a changed intention ends is explained after its end',
      async () => {
        const [near, far] = await web.connectTo(chat)
        const { connections } = await b.daemon.connections()
        const open = connections.find(({ destination }) => destination === 'chat')
        assert.ok(open)
        await mesh.deny('web', 'chat')
        assert.equal((await near.readRest()).ending, 'ECONNRESET')
        assert.equal((await far.readRest()).ending, 'ECONNRESET')
        const said = await explained(b, '--connection', open.id)
        assert.equal(said.verdict, 'denied')
        assert.match(station(said, 'connection').summary, /DENY .*intentions have changed/)
        assert.equal(said.policy?.intention?.destination, 'chat')
      },
    )

    await t.test(
      'an instance that leaves makes the service unreachable, in words and in fact',
      async () => {
        await db.leave()
        await eventually(async () => {
          const said = await explained(a, '--from', 'web', '--to', 'db')
          assert.ok(['unreachable', 'unknownService'].includes(said.verdict), said.summary)
        })
        await assert.rejects(web.callPort(9001))
        await db.join()
        await eventually(() => web.callPort(9001))
      },
    )
  })
}
