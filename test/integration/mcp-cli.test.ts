/**
 * `hostmesh mcp` with a scripted client: handshake, tools with schemas, answers, bounds, and hostile messages.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { z } from 'zod'
import { McpServer } from '../../src/cli/mcp-server.ts'
import { explain } from '../../src/daemon/explain/explain.ts'
import { facts } from '../unit/explain-fixtures.ts'
import { scriptedView, startScripted } from './admin-fixtures.ts'
import { startAggregator } from './fleet-fixtures.ts'

const executable = fileURLToPath(new URL('../../scripts/hostmesh', import.meta.url))

interface Answer {
  readonly id: number | null
  readonly result?: {
    readonly protocolVersion?: string
    readonly tools?: readonly { readonly name: string; readonly inputSchema: { type: string } }[]
    readonly content?: readonly { readonly text: string }[]
    readonly isError?: boolean
  }
  readonly error?: { readonly code: number; readonly message: string }
}

/** Writes lines to the real executable, and returns one answer a line. */
async function talk(lines: readonly string[], env: Record<string, string>): Promise<Answer[]> {
  const child = spawn(executable, ['mcp'], {
    env: { PATH: process.env['PATH'] ?? '', ...env },
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  const exited = once(child, 'exit')
  child.stdin.end(lines.map((line) => `${line}\n`).join(''))
  const answers: Answer[] = []
  for await (const line of createInterface({ input: child.stdout })) answers.push(JSON.parse(line))
  assert.deepEqual(await exited, [0, null], 'it ends when its input does')
  return answers
}

function request(id: number, method: string, params: object = {}): string {
  return JSON.stringify({ jsonrpc: '2.0', id, method, params })
}

function call(id: number, name: string, args: object = {}): string {
  return request(id, 'tools/call', { name, arguments: args })
}

function textOf(answer: Answer | undefined): string {
  return answer?.result?.content?.[0]?.text ?? ''
}

test('a client shakes hands, lists the tools, and gets an answer from each', async () => {
  await using fleet = await startAggregator()
  await using host = await startScripted(
    scriptedView({
      explain: () => Promise.resolve(explain(facts(), { kind: 'pair', from: 'web', to: 'db' })),
    }),
  )
  const entries = JSON.stringify([
    { Kind: 'service-intentions', Name: 'db', Sources: [{ Name: 'web', Action: 'allow' }] },
  ])
  const answers = await talk(
    [
      request(1, 'initialize', { protocolVersion: '2025-03-26', capabilities: {} }),
      '{"jsonrpc":"2.0","method":"notifications/initialized"}',
      request(2, 'tools/list'),
      call(3, 'graph', { destination: 'db', limit: 1 }),
      call(4, 'services'),
      call(5, 'hosts'),
      call(6, 'explain', { from: 'web', to: 'db' }),
      call(7, 'simulate', { intentions: entries }),
      call(8, 'risks'),
    ],
    {
      HOSTMESH_AGGREGATOR: fleet.socketPath,
      HOSTMESH_ADDR: `unix://${host.socketPath}`,
    },
  )
  assert.deepEqual(
    answers.map(({ id }) => id),
    [1, 2, 3, 4, 5, 6, 7, 8],
  )
  assert.equal(answers[0]?.result?.protocolVersion, '2025-03-26')
  const tools = answers[1]?.result?.tools ?? []
  assert.deepEqual(
    tools.map(({ name }) => name),
    ['graph', 'services', 'hosts', 'explain', 'simulate', 'risks'],
  )
  assert.ok(tools.every(({ inputSchema }) => inputSchema.type === 'object'))
  for (const answer of answers.slice(2)) assert.equal(answer.result?.isError, false, textOf(answer))
  const graph: { edges: { destination: string }[]; left: number } = JSON.parse(textOf(answers[2]))
  assert.deepEqual(
    graph.edges.map(({ destination }) => destination),
    ['db'],
  )
  assert.equal(graph.left, 1)
  assert.match(textOf(answers[5]), /"verdict":/)
  assert.match(textOf(answers[6]), /"cut":\d/)
})

test('what a tool cannot answer is an error for the agent, and the next question is answered', async () => {
  const [lost, alive] = await talk([call(1, 'risks'), request(2, 'ping')], {
    HOSTMESH_AGGREGATOR: '/nonexistent/api.sock',
  })
  assert.equal(lost?.result?.isError, true)
  assert.match(textOf(lost), /HM_FLEET_UNREACHABLE/)
  assert.deepEqual(alive?.result, {})
})

test('messages that are none, unknown methods, tools and arguments are answered with the codes of JSON-RPC', async () => {
  const server = new McpServer('1', [
    {
      name: 'big',
      description: 'x',
      input: z.strictObject({ size: z.int() }),
      call: (input) => Promise.resolve('y'.repeat(z.object({ size: z.int() }).parse(input).size)),
    },
  ])
  const ask = async (line: string): Promise<Answer> => JSON.parse((await server.answer(line)) ?? '')
  assert.equal((await ask('{')).error?.code, -32_700)
  assert.equal((await ask('[]')).error?.code, -32_600)
  assert.equal((await ask(`"${'x'.repeat(2_000_000)}"`)).error?.code, -32_600)
  assert.equal((await ask(request(1, 'tools/write'))).error?.code, -32_601)
  assert.equal((await ask(call(1, 'none'))).error?.code, -32_602)
  assert.equal((await ask(call(1, 'big', { size: 1, more: 2 }))).error?.code, -32_602)
  assert.equal(await server.answer('{"jsonrpc":"2.0","method":"tools/call"}'), undefined)
  const cut = textOf(await ask(call(1, 'big', { size: 5_000_000 })))
  assert.ok(cut.length < 101_000)
  assert.match(cut, /\(cut: 5000002 characters/)
})
