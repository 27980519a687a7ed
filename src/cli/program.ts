/**
 * The command tree, its global options, and the conversion from arguments to an exit code.
 *
 * Groups that load much code (certificates, configuration, capture) are imported only when needed, so that
 * `hostmesh status` starts fast.
 */
import { Command, CommanderError, Help } from 'commander'
import { MeshError } from '../lib/errors.ts'
import { hostmeshVersion } from '../lib/version.ts'
import { addressOption } from './admin-command.ts'
import { aggregatorCommand } from './aggregator.ts'
import { certsCommand } from './certs.ts'
import { completionCommand } from './completion.ts'
import { connectionsCommand } from './connections.ts'
import { edgesCommand, topCommand } from './edges.ts'
import { exampleHelp } from './examples.ts'
import { explainCommand, snapshotCommand } from './explain.ts'
import { describeFailure, type ExitCode, exitCodeOf, exitCodes } from './failure.ts'
import { intentionsCommand } from './intentions.ts'
import { peersCommand } from './peers.ts'
import { pingCommand } from './ping.ts'
import { reloadCommand } from './reload.ts'
import { routesCommand } from './routes.ts'
import { runCommand } from './run.ts'
import { servicesCommand } from './services.ts'
import { statusCommand } from './status.ts'
import { versionCommand } from './version.ts'

const HELP = 'help'

const DAEMON_GROUP = 'The daemon of this host:'
const ASK_GROUP = 'Querying the daemon:'
const FLEET_GROUP = 'Querying the aggregator:'
const OTHER_GROUP = 'Without a daemon:'

const EXIT_CODE_HELP = `
Exit codes: 0 ok; 1 failed, or not well; 2 wrong usage or configuration; 3 nobody answers;
4 permission denied; 5 not found.`

/** Commands that load much code, in the order of the help. */
const groups: Readonly<Record<string, () => Promise<Command>>> = {
  check: async () => (await import('./check.ts')).checkCommand().helpGroup(ASK_GROUP),
  bundle: async () => (await import('./bundle.ts')).bundleCommand().helpGroup(ASK_GROUP),
  fleet: async () => (await import('./fleet.ts')).fleetCommand().helpGroup(FLEET_GROUP),
  config: async () => (await import('./config.ts')).configCommand(),
  ca: async () => (await import('./ca.ts')).caCommand(),
  capture: async () => (await import('./capture.ts')).captureCommand(),
  simulate: async () => (await import('./simulate.ts')).simulateCommand(),
  mcp: async () => (await import('./mcp.ts')).mcpCommand().helpGroup(FLEET_GROUP),
  policy: async () => (await import('./policy.ts')).policyCommand(),
  uninstall: async () => (await import('./uninstall.ts')).uninstallCommand(),
}

/**
 * The command tree. `words` are the arguments that will be parsed. Of the groups that are expensive to load, the tree
 * has only the one that the first word names, none if that names another command, and all if it names nothing.
 */
export async function buildProgram(words: readonly string[] = []): Promise<Command> {
  const program = new Command('hostmesh')
    .description('Service mesh for hosts: Consul service mesh without sidecars')
    .version(hostmeshVersion, '-V, --version', 'print the version')
    .addOption(addressOption())
    .addHelpText('after', EXIT_CODE_HELP)
    .helpCommand(false)
    .configureHelp({
      showGlobalOptions: true,
      optionDescription: (option) =>
        `${new Help().optionDescription(option)}${option.mandatory ? ' (required)' : ''}`,
    })
    .configureOutput({ outputError: (text, write) => write(usageError(text)) })
    .showHelpAfterError('  hint: add --help to see what can be given')
    .exitOverride()

  const cheap = [
    runCommand().helpGroup(DAEMON_GROUP),
    reloadCommand().helpGroup(DAEMON_GROUP),
    ...[
      statusCommand(),
      servicesCommand(),
      peersCommand(),
      connectionsCommand(),
      edgesCommand(),
      topCommand(),
      routesCommand(),
      intentionsCommand(),
      certsCommand(),
      explainCommand(),
      pingCommand(),
      snapshotCommand(),
    ].map((command) => command.helpGroup(ASK_GROUP)),
    aggregatorCommand().helpGroup(FLEET_GROUP),
    versionCommand().helpGroup(OTHER_GROUP),
    completionCommand(() => buildProgram()).helpGroup(OTHER_GROUP),
    helpCommand(program).helpGroup(OTHER_GROUP),
  ]
  for (const command of cheap) mount(program, command)
  for (const load of groupsFor(words[0] ?? HELP, cheap)) mount(program, groupedHelp(await load()))
  return program
}

function groupedHelp(command: Command): Command {
  return command.helpGroup() === '' ? command.helpGroup(OTHER_GROUP) : command
}

/** `hostmesh help ca token`: commander's own help takes a single word, and shows something for an unknown one. */
function helpCommand(program: Command): Command {
  return new Command(HELP)
    .description('Show help for a command')
    .argument('[command...]', 'the words of the command')
    .action((words: readonly string[]) => {
      let command = program
      for (const word of words) {
        const next = command.commands.find((one) => one.name() === word)
        if (next === undefined)
          throw new MeshError(
            'HM_USAGE_COMMAND',
            `Cannot show help: there is no command ${JSON.stringify(words.join(' '))}`,
            { hint: 'See what there is: hostmesh help' },
          )
        command = next
      }
      command.outputHelp()
    })
}

function groupsFor(word: string, others: readonly Command[]): readonly (() => Promise<Command>)[] {
  const named = Object.hasOwn(groups, word) ? groups[word] : undefined
  if (named !== undefined) return [named]
  const isOther = word !== HELP && others.some((command) => command.name() === word)
  return isOther ? [] : Object.values(groups)
}

/** Adds a command made elsewhere; commander copies the program's settings only to commands that it creates itself. */
function mount(parent: Command, command: Command): void {
  parent.addCommand(command)
  inheritSettings(parent, command)
  addExamples(command, command.name())
}

function addExamples(command: Command, words: string): void {
  const text = exampleHelp(words)
  if (text !== undefined) command.addHelpText('after', text)
  for (const child of command.commands) addExamples(child, `${words} ${child.name()}`)
}

function inheritSettings(parent: Command, command: Command): void {
  command.copyInheritedSettings(parent)
  for (const child of command.commands) inheritSettings(command, child)
}

/**
 * Parses, runs, and reports failures on standard error. Never throws and never ends the process. A command may have set
 * process.exitCode itself, so a 0 from here must not overwrite it.
 */
export async function runProgram(words: readonly string[]): Promise<ExitCode> {
  try {
    const program = await buildProgram(words)
    await program.parseAsync(words, { from: 'user' })
    return exitCodes.ok
  } catch (error) {
    // commander has already printed the error, help or version.
    if (error instanceof CommanderError)
      return error.exitCode === 0 ? exitCodes.ok : exitCodes.usage
    process.stderr.write(describeFailure(error))
    return exitCodeOf(error)
  }
}

/** Converts `error: unknown option '--x'` to a sentence in our style. */
function usageError(text: string): string {
  const sentence = text.replace(/^error: /, '')
  return `hostmesh: ${sentence.charAt(0).toUpperCase()}${sentence.slice(1)}`
}
