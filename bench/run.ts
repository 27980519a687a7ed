/**
 * `npm run bench`: hostmesh beside the proxies it replaces, measured in one run on one machine.
 *
 * Ends with code 0 when every present subject could be measured, whatever the figures say; 1 when one
 * failed; 130 when it was called off.
 */
import { describeError, MeshError } from '../src/lib/errors.ts'
import { runCampaign } from './campaign.ts'
import { judge } from './measure/verdicts.ts'
import { HELP, parseCommand, type RunOptions } from './options.ts'
import { verdictTable } from './report/text.ts'
import { writeReport } from './report.ts'
import { headerFile, writeResults } from './results.ts'
import { JUDGED } from './subject-names.ts'

async function main(): Promise<number> {
  const command = parseCommand(process.argv.slice(2))
  switch (command.kind) {
    case 'help':
      process.stdout.write(HELP)
      return 0
    case 'report':
      await writeReport(command.options)
      return 0
    case 'run':
      return await measure(command.options)
  }
}

async function measure(options: RunOptions): Promise<number> {
  const calledOff = new AbortController()
  // Once: a second Ctrl-C ends the program at once, and the next run sweeps up.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
    process.once(signal, () => {
      process.stderr.write(`\n${signal}: taking everything down\n`)
      calledOff.abort(new MeshError('HM_BENCH_CALLED_OFF', 'The run was called off'))
    })
  try {
    const results = await runCampaign(options, calledOff.signal)
    process.stdout.write(verdictTable(judge(results.rows, JUDGED)))
    if (options.jsonFile !== undefined) {
      await writeResults(options.jsonFile, results)
      process.stdout.write(`\nwritten: ${options.jsonFile}, ${headerFile(options.jsonFile)}\n`)
    }
    const { failures } = results.header
    if (failures.length > 0) process.stderr.write(`\nfailures: ${failures.length}, see above\n`)
    return failures.length === 0 ? 0 : 1
  } catch (error) {
    if (calledOff.signal.aborted) return 130
    throw error
  }
}

try {
  process.exitCode = await main()
} catch (error) {
  const hint = error instanceof MeshError && error.hint !== undefined ? `\n${error.hint}` : ''
  process.stderr.write(`bench: ${describeError(error)}${hint}\n`)
  process.exitCode = 1
}
