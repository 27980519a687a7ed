/**
 * `hostmesh mcp`: answers an agent's questions about the mesh over standard input and output, by the Model Context
 * Protocol (JSON-RPC 2.0, one message a line). It only reads, and has the rights of the user who starts it.
 */
import { createInterface } from 'node:readline'
import { Command } from 'commander'
import { hostmeshVersion } from '../lib/version.ts'
import { addFleetOptions } from './fleet-command.ts'
import { McpServer } from './mcp-server.ts'
import { type McpOptions, mcpTools } from './mcp-tools.ts'

/** The `mcp` command. */
export function mcpCommand(): Command {
  const command = new Command('mcp').description(
    'Serve read-only questions to an agent: Model Context Protocol on standard input and output',
  )
  return addFleetOptions(command).action(async (_options: unknown, self: Command) => {
    const server = new McpServer(hostmeshVersion, mcpTools(self.optsWithGlobals<McpOptions>()))
    // One after the other: the answers of a fleet are large.
    for await (const line of createInterface({ input: process.stdin })) {
      const answer = await server.answer(line)
      if (answer !== undefined) process.stdout.write(`${answer}\n`)
    }
  })
}
