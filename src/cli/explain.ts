/**
 * `hostmesh explain` and `hostmesh snapshot`: why a connection goes where it goes, from the running daemon or from a
 * file that `hostmesh snapshot` wrote on a daemon's host.
 */
import { Command } from 'commander'
import { MeshError } from '../lib/errors.ts'
import type { Explanation, Verdict } from '../model/explanation.ts'
import { fetchDocument } from './admin-client.ts'
import { type AdminOptions, hasKey, printJson } from './admin-command.ts'
import { type ExitCode, exitCodes } from './failure.ts'
import { readingCommand, show } from './reading-command.ts'
import { renderExplanation } from './render/explanation.ts'

interface ExplainOptions extends AdminOptions {
  readonly from?: string
  readonly to?: string
  readonly connection?: string
  readonly snapshot?: string
  readonly probe?: true
}

const EXIT_BY_VERDICT: Record<Verdict, ExitCode> = {
  allowed: exitCodes.ok,
  denied: exitCodes.failed,
  unreachable: exitCodes.failed,
  uncaptured: exitCodes.failed,
  undecided: exitCodes.failed,
  unknownCaller: exitCodes.notFound,
  unknownService: exitCodes.notFound,
}

/** The `explain` command. */
export function explainCommand(): Command {
  return readingCommand('explain', 'Explain why a connection goes where it goes, or does not')
    .option('--from <service>', 'who calls: a service, or an instance id of this host')
    .option('--to <destination>', 'what is called: db, db.mesh, db:5432, 240.0.0.1:5432')
    .option('--connection <id>', 'an open or refused connection, as hostmesh connections names it')
    .option('--probe', "ask the destination's daemon now; no application is touched")
    .option('--snapshot <file>', 'answer from what hostmesh snapshot wrote, without a daemon')
    .action(async (_options: unknown, command: Command) => {
      const options = command.optsWithGlobals<ExplainOptions>()
      await show(options, async () => {
        const explanation =
          options.snapshot === undefined
            ? await askDaemon(options)
            : await readSnapshot(options, options.snapshot)
        return {
          document: explanation,
          text: () => renderExplanation(explanation, Date.now()),
          exitCode: EXIT_BY_VERDICT[explanation.verdict],
        }
      })
    })
}

/** The `snapshot` command. */
export function snapshotCommand(): Command {
  return new Command('snapshot')
    .description('Write what this host knows, without keys, for hostmesh explain --snapshot')
    .option(
      '-o, --output <file>',
      'file to write, readable by its owner alone; standard output unless given',
    )
    .action(async (_options: unknown, command: Command) => {
      const { addr, output } = command.optsWithGlobals<{ addr: string; output?: string }>()
      const facts = await fetchDocument(addr, '/v1/snapshot', isObject)
      if (output === undefined) {
        printJson(facts)
        return
      }
      const { writeFacts } = await import('../daemon/facts-file.ts')
      writeFacts(output, facts)
      console.error(`Wrote ${output}`)
    })
}

function askDaemon({ addr, from, to, connection, probe }: ExplainOptions): Promise<Explanation> {
  const query = new URLSearchParams()
  if (probe === true && connection !== undefined)
    throw new MeshError('HM_USAGE_QUESTION', 'Cannot probe for a connection', {
      hint: 'Give --from and --to with --probe',
    })
  if (probe === true) query.set('probe', '1')
  if (connection === undefined) {
    const pair = pairOf(from, to)
    query.set('from', pair.from)
    query.set('to', pair.to)
  } else {
    if (from !== undefined || to !== undefined)
      throw new MeshError('HM_USAGE_QUESTION', 'Cannot explain a connection and a pair at once', {
        hint: 'Give --from and --to, or --connection',
      })
    query.set('connection', connection)
  }
  return fetchDocument(addr, `/v1/explain?${query.toString()}`, isExplanation)
}

async function readSnapshot(options: ExplainOptions, file: string): Promise<Explanation> {
  if (options.probe === true)
    throw new MeshError('HM_USAGE_QUESTION', 'Cannot probe from a file', {
      hint: 'Only the daemon can ask other hosts: leave out --snapshot',
    })
  if (options.connection !== undefined)
    throw new MeshError('HM_USAGE_QUESTION', 'Cannot explain a connection from a file', {
      hint: 'A snapshot has no connections: give --from and --to, or ask the daemon',
    })
  const pair = pairOf(options.from, options.to)
  const [{ explain }, { readFacts }] = await Promise.all([
    import('../daemon/explain/explain.ts'),
    import('../daemon/facts-file.ts'),
  ])
  return explain(readFacts(file), { kind: 'pair', ...pair })
}

function pairOf(
  from: string | undefined,
  to: string | undefined,
): { readonly from: string; readonly to: string } {
  if (from !== undefined && to !== undefined) return { from, to }
  throw new MeshError('HM_USAGE_QUESTION', 'Cannot explain: say who calls and what is called', {
    hint: 'hostmesh explain --from web --to db, or hostmesh explain --connection 0-17',
  })
}

function isExplanation(value: unknown): value is Explanation {
  return (
    hasKey(value, 'stations', Array.isArray) &&
    hasKey(value, 'next', Array.isArray) &&
    hasKey(value, 'verdict', (verdict) => typeof verdict === 'string' && verdict in EXIT_BY_VERDICT)
  )
}

function isObject(value: unknown): value is object {
  return hasKey(value, 'services', Array.isArray)
}
