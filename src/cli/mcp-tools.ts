/**
 * The questions of `hostmesh mcp`. Each only reads, by the same functions as the commands of that name.
 */
import { z } from 'zod'
import { readIntentions } from '../daemon/intention-file.ts'
import { simulate } from '../daemon/simulate.ts'
import { fetchDocument } from './admin-client.ts'
import { hasKey } from './admin-command.ts'
import { fetchFleet } from './fleet-client.ts'
import type { FleetOptions } from './fleet-command.ts'
import type { McpTool } from './mcp-server.ts'

/** Where questions are answered. */
export interface McpOptions extends FleetOptions {
  readonly addr: string
}

const LIMIT = 100

const name = z.string().min(1).max(128)
const limit = z
  .int()
  .min(1)
  .max(1_000)
  .default(LIMIT)
  .describe('Most entries of the answer; the rest is counted')
const window = z
  .string()
  .regex(/^\d{1,5}[smhd]$/)
  .default('5m')
  .describe('Span of the figures, 10s to 1d')

const graphInput = z.strictObject({
  source: name.optional().describe('Only pairs with this caller'),
  destination: name.optional().describe('Only pairs with this destination'),
  window,
  limit,
})
const servicesInput = z.strictObject({
  service: name.optional().describe('One service with instances, callers and intentions'),
  limit,
})
const hostsInput = z.strictObject({ host: name.optional().describe('One host in full'), limit })
const explainInput = z.strictObject({
  from: name.describe('A service of this host'),
  to: z.string().min(1).max(256).describe('A service, DNS name, or address with port'),
  probe: z.boolean().default(false).describe("Ask the destination's daemons now"),
})
const simulateInput = z.strictObject({
  intentions: z
    .string()
    .min(1)
    .max(500_000)
    .describe('The whole set, JSON or YAML: config entries of Consul, or a catalog file'),
  defaultPolicy: z.enum(['allow', 'deny']).default('deny'),
  window: window.default('1d'),
  limit,
})
const risksInput = z.strictObject({ limit })

/** All tools. */
export function mcpTools(options: McpOptions): McpTool[] {
  return [
    tool(
      'graph',
      'Who calls whom in the fleet, with rates, errors and policy',
      graphInput,
      (input) => graph(options, input),
    ),
    tool('services', 'Services of the fleet, or one of them', servicesInput, async (input) => {
      if (input.service !== undefined)
        return fetchFleet(options, 'service', { name: input.service })
      const document = await fetchFleet(options, 'services')
      return { ...document, ...firstOf('services', document.services, input.limit) }
    }),
    tool('hosts', 'Hosts of the fleet, or one of them', hostsInput, async (input) => {
      if (input.host !== undefined) return fetchFleet(options, 'host', { name: input.host })
      const document = await fetchFleet(options, 'hosts')
      return { ...document, ...firstOf('hosts', document.hosts, input.limit) }
    }),
    tool(
      'explain',
      'Whether a service of this host may reach a destination, and what decides it',
      explainInput,
      ({ from, to, probe }) => {
        const query = new URLSearchParams({ from, to, ...(probe && { probe: '1' }) })
        const path = `/v1/explain?${query.toString()}`
        return fetchDocument(options.addr, path, isExplanation)
      },
    ),
    tool(
      'simulate',
      'What a set of intentions would cut or open of what was seen; changes nothing',
      simulateInput,
      async (input) => {
        const seen = await fetchFleet(options, 'graph', { window: input.window })
        const destinations = [...new Set(seen.edges.map(({ destination }) => destination))]
        const { defaultPolicy } = input
        const set = readIntentions(input.intentions, {
          fileName: 'intentions',
          defaultPolicy,
          destinations,
        })
        const result = simulate(set, seen.edges)
        return { ...result, ...firstOf('pairs', result.pairs, input.limit) }
      },
    ),
    tool('risks', 'What will fail sooner or later, and what to do', risksInput, async (input) => {
      const document = await fetchFleet(options, 'risks')
      return { ...document, ...firstOf('risks', document.risks, input.limit) }
    }),
  ]
}

function tool<Input>(
  called: string,
  description: string,
  input: z.ZodType<Input>,
  call: (input: Input) => Promise<unknown>,
): McpTool {
  return { name: called, description, input, call: async (given) => call(input.parse(given)) }
}

async function graph(options: McpOptions, input: z.output<typeof graphInput>): Promise<object> {
  const document = await fetchFleet(options, 'graph', { window: input.window })
  const edges = document.edges.filter(
    ({ source, destination }) =>
      (input.source ?? source) === source && (input.destination ?? destination) === destination,
  )
  return { coverage: document.coverage, ...firstOf('edges', edges, input.limit) }
}

/** The first entries under a key, and how many more there are. */
function firstOf(key: string, list: readonly unknown[], most: number): object {
  return { [key]: list.slice(0, most), left: Math.max(0, list.length - most) }
}

function isExplanation(value: unknown): value is object {
  return hasKey(value, 'stations', Array.isArray)
}
