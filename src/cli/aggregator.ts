/**
 * `hostmesh aggregator`: the picture of the fleet, in the foreground, until it is stopped.
 */
import { Command } from 'commander'

/** The `aggregator` command. */
export function aggregatorCommand(): Command {
  return new Command('aggregator')
    .description('Serve the picture of the fleet: reports of hosts, API and dashboard')
    .requiredOption('--config <file>', 'configuration file')
    .action(async ({ config }: { config: string }) => {
      // Imported only here: other commands do not need its code.
      const { runAggregator } = await import('../aggregator/service.ts')
      await runAggregator(config)
    })
}
