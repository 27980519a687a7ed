/**
 * Consul's verdict is ours, for every pair: random sets of intentions in a real Consul, read the way the
 * daemon reads them (`/match`, decoder, compile, evaluate), against `/v1/connect/intentions/check`.
 *
 * Both worlds of the default policy: ACLs with default deny, read with the rights of a host, and ACLs off,
 * which means allow. HOSTMESH_TEST_SEED repeats a run that failed.
 */
import assert from 'node:assert/strict'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { Agent, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import {
  decodeAgentSelf,
  parseDefaultPolicy,
} from '../../src/controlplane/catalog/consul/decode-agent.ts'
import { decodeIntentions } from '../../src/controlplane/catalog/consul/decode-intentions.ts'
import {
  type ConsulTransport,
  createTransport,
  requireOk,
} from '../../src/controlplane/catalog/consul/transport.ts'
import { compile, nothingCompiled } from '../../src/controlplane/discovery/compile.ts'
import { evaluate } from '../../src/model/evaluate.ts'
import type { DefaultPolicy } from '../../src/model/intention.ts'
import type { Snapshot } from '../../src/model/snapshot.ts'
import { eventually } from '../harness/eventually.ts'
import { Network } from '../harness/network.ts'
import { OwnedProcess } from '../harness/owned-process.ts'

const seed = Number(process.env['HOSTMESH_TEST_SEED'] ?? Date.now() % 1_000_000_000)

/** Verdicts compared in each of the two worlds. */
const LEAST_VERDICTS = 10_000

/** Names of callers as certificates carry them, many of them patterns of others to a careless matcher. */
const CALLERS = 'web Web web2 a.b a-b a_b axb ab a.b.c api svc-1 __proto__ x'.split(' ')

/** What Consul accepts as a source and no certificate carries: if one were a pattern, it would show. */
const ODD_SOURCES = [
  '.',
  'a.',
  '[ab]',
  'a?b',
  '^web',
  'web$',
  'a|b',
  '(web)',
  'we ',
  ' web',
  '\\w',
  '%61',
  'é',
  'a b',
]

const DESTINATIONS = ['db', 'd.b', 'd-b', 'dxb', 'web', 'a.b', 'constructor', 'nobody-named-it']

/**
 * Other spellings of a destination; Consul finds the rules of `db` under each. Newer ones do so in `/match`, which
 * is what their sidecars obey, and not in `/check`: there is nothing to compare with then.
 */
const RESPELLED = ['DB', 'Web', 'A.B']

interface Rule {
  readonly source: string
  readonly destination: string
  readonly action: 'allow' | 'deny'
}

for (const world of [
  { name: 'ACLs in default deny', acls: true, expected: 'deny' },
  { name: 'ACLs off', acls: false, expected: 'allow' },
] as const)
  test(`every verdict is Consul's, with ${world.name}`, async () => {
    await using consul = await DevConsul.start(world.acls)
    const random = randomFrom(seed)
    const { defaultPolicy, isOld } = await consul.about()
    assert.equal(defaultPolicy, world.expected)
    const destinations = isOld ? [...DESTINATIONS, ...RESPELLED] : DESTINATIONS
    let verdicts = 0
    let allowed = 0
    while (verdicts < LEAST_VERDICTS) {
      const rules = randomRules(random, destinations)
      await consul.replaceIntentions(rules)
      const snapshot = await consul.snapshot(world.expected)
      for (const destination of DESTINATIONS) {
        const policy = snapshot.policies.get(destination)
        assert.notEqual(policy, undefined, destination)
        const theirs = await Promise.all(CALLERS.map((source) => consul.check(source, destination)))
        for (const [index, source] of CALLERS.entries()) {
          const ours = evaluate(source, policy)
          const told = JSON.stringify({ seed, source, destination, ours, rules })
          assert.equal(ours.allow, theirs[index], `Consul says ${theirs[index]}: ${told}`)
          verdicts += 1
          allowed += Number(ours.allow)
        }
      }
    }
    const share = allowed / verdicts
    assert.ok(share > 0.1 && share < 0.9, `seed ${seed}: ${share} of all allowed proves little`)
  })

test('Consul has no partial wildcards, and to us they would be names', async () => {
  await using consul = await DevConsul.start(false)
  for (const name of ['a*', '.*', '**', '*b'])
    await assert.rejects(
      consul.create({ source: name, destination: 'db', action: 'allow' }),
      /wildcard character/,
    )
})

/** A few to a few dozen rules, dense enough that several match most pairs. */
function randomRules(random: () => number, destinations: readonly string[]): readonly Rule[] {
  const pick = <T>(from: readonly T[]): T => from[Math.floor(random() * from.length)] as T
  const byPair = new Map<string, Rule>()
  const count = Math.floor(random() * 32)
  const wildcards = random() * 0.5
  for (let index = 0; index < count; index += 1) {
    const source = random() < wildcards ? '*' : pick(random() < 0.8 ? CALLERS : ODD_SOURCES)
    const destination = random() < wildcards ? '*' : pick(destinations)
    // Two rules whose names differ in case only are the same to Consul, which takes the first.
    const pair = `${source} ${destination}`.toLowerCase()
    if (!byPair.has(pair))
      byPair.set(pair, { source, destination, action: random() < 0.5 ? 'allow' : 'deny' })
  }
  return [...byPair.values()]
}

/** mulberry32. */
function randomFrom(start: number): () => number {
  let state = start >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** A Consul of one server in memory, in a namespace of its own. */
class DevConsul implements AsyncDisposable {
  private readonly connections = new Agent({ keepAlive: true, maxSockets: 8 })
  /** Makes the rules; the reader has the rights that docs/consul.md gives to a host. */
  private operatorToken = ''
  private reader: ConsulTransport
  private readonly address: string
  private readonly undo: AsyncDisposableStack
  private ids: string[] = []

  private constructor(address: string, undo: AsyncDisposableStack) {
    this.address = address
    this.undo = undo
    undo.defer(() => this.connections.destroy())
    this.reader = undo.use(this.connect())
  }

  static async start(acls: boolean): Promise<DevConsul> {
    await using undo = new AsyncDisposableStack()
    const folder = await mkdtemp(join(tmpdir(), 'hmt-consul-'))
    undo.defer(() => rm(folder, { recursive: true, force: true }))
    const network = undo.use(await Network.create(['consul']))
    const socket = join(folder, 'http.sock')
    const configPath = join(folder, 'consul.json')
    await writeFile(
      configPath,
      JSON.stringify({
        addresses: { http: `127.0.0.1 unix://${socket}` },
        ports: { dns: -1, grpc: -1 },
        log_level: 'warn',
        disable_update_check: true,
        ...(acls && {
          acl: { enabled: true, default_policy: 'deny' },
        }),
      }),
    )
    const agent = await OwnedProcess.start(
      network.host('consul').inside(['consul', 'agent', '-dev', '-config-file', configPath]),
      { name: 'consul agent' },
    )
    undo.defer(async () => void (await agent.kill()))
    const consul = new DevConsul(`unix://${socket}`, undo.move())
    try {
      if (acls) await eventually(() => consul.bootstrap(), { withinMs: 30_000, everyMs: 200 })
      await eventually(() => consul.ask('GET', '/v1/connect/intentions'), { withinMs: 30_000 })
      if (acls) await consul.makeReader()
      return consul
    } catch (error) {
      await consul[Symbol.asyncDispose]()
      throw error
    }
  }

  /** The default policy as the catalog learns it: from a header, or where none tells from the agent. */
  async about(): Promise<{ defaultPolicy: DefaultPolicy | undefined; isOld: boolean }> {
    const answer = await this.reader.call('GET', '/v1/agent/self')
    const told = parseDefaultPolicy(answer.defaultAclPolicy)
    return {
      defaultPolicy: told ?? decodeAgentSelf(requireOk(answer, 'self').body).defaultPolicy,
      isOld: told === undefined,
    }
  }

  async create(rule: Rule): Promise<void> {
    const body = {
      SourceName: rule.source,
      DestinationName: rule.destination,
      SourceType: 'consul',
      Action: rule.action,
    }
    const made = (await this.ask('POST', '/v1/connect/intentions', body)) as { ID: string }
    this.ids.push(made.ID)
  }

  async replaceIntentions(rules: readonly Rule[]): Promise<void> {
    const old = this.ids
    this.ids = []
    await Promise.all(old.map((id) => this.ask('DELETE', `/v1/connect/intentions/${id}`)))
    await Promise.all(rules.map((rule) => this.create(rule)))
  }

  /** What the data plane would act on. */
  async snapshot(defaultPolicy: DefaultPolicy): Promise<Snapshot> {
    const names = DESTINATIONS.map((name) => `&name=${encodeURIComponent(name)}`).join('')
    const path = `/v1/connect/intentions/match?by=destination${names}`
    const answer = requireOk(await this.reader.call('GET', path), 'match')
    const decoded = decodeIntentions(DESTINATIONS, answer.body)
    assert.deepEqual(decoded.problems, [])
    return compile(
      {
        datacenter: 'dc1',
        nodeName: 'a',
        localServices: DESTINATIONS.map((name) => ({
          name,
          id: name,
          target: { ip: '127.0.0.1', port: 80 },
          connectPort: undefined,
          selector: undefined,
          capturePort: undefined,
          upstreams: [],
        })),
        catalogServices: new Map(),
        policies: new Map(
          [...decoded.byDestination].map(([destination, intentions]) => [
            destination,
            { destination, intentions, defaultPolicy },
          ]),
        ),
        virtualIps: () => [],
      },
      nothingCompiled,
    ).snapshot
  }

  async check(source: string, destination: string): Promise<boolean> {
    const query = `source=${encodeURIComponent(source)}&destination=${encodeURIComponent(destination)}`
    const answer = await this.reader.call('GET', `/v1/connect/intentions/check?${query}`)
    return (requireOk(answer, 'check').body as { Allowed: boolean }).Allowed
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.undo.disposeAsync()
  }

  /** A token as a host has it: with that of an operator the default policy of a check is not the host's. */
  private async makeReader(): Promise<void> {
    const rules =
      'node_prefix "" { policy = "read" } service_prefix "" { policy = "read" } agent_prefix "" { policy = "read" }'
    await this.ask('PUT', '/v1/acl/policy', { Name: 'host', Rules: rules })
    const made = (await this.ask('PUT', '/v1/acl/token', { Policies: [{ Name: 'host' }] })) as {
      SecretID: string
    }
    this.reader = this.undo.use(this.connect(made.SecretID))
  }

  private connect(token?: string): ConsulTransport {
    return createTransport({ address: this.address, token, requestTimeout: 10_000 })
  }

  private async bootstrap(): Promise<void> {
    const made = (await this.ask('PUT', '/v1/acl/bootstrap')) as { SecretID: string }
    this.operatorToken = made.SecretID
  }

  private ask(method: string, path: string, body?: unknown): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const asked = request(
        {
          socketPath: this.address.slice('unix://'.length),
          agent: this.connections,
          method,
          path,
          headers: this.operatorToken === '' ? {} : { 'x-consul-token': this.operatorToken },
          timeout: 10_000,
        },
        (response) => {
          text(response).then((answer) => {
            if (response.statusCode === 200) resolve(JSON.parse(answer))
            else reject(new Error(`${method} ${path}: ${answer}`))
          }, reject)
        },
      )
      asked.once('timeout', () => asked.destroy(new Error(`${method} ${path}: no answer`)))
      asked.once('error', reject)
      asked.end(body === undefined ? undefined : JSON.stringify(body))
    })
  }
}
