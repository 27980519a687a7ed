/**
 * The command tree and what is promised about it: docs/cli.md, exit codes, failures as sentences.
 */
import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import type { Command } from 'commander'
import { socketPathOf } from '../../src/cli/admin-client.ts'
import { examples } from '../../src/cli/examples.ts'
import { describeFailure, exitCodeOf, exitCodes } from '../../src/cli/failure.ts'
import { buildProgram } from '../../src/cli/program.ts'
import { MeshError } from '../../src/lib/errors.ts'

const doc = readFileSync(new URL('../../docs/cli.md', import.meta.url), 'utf8')

/** Every command that does something, by its words, such as `ca issue`. */
function leafCommands(command: Command, words: readonly string[] = []): [string, Command][] {
  if (command.commands.length === 0) return [[words.join(' '), command]]
  return command.commands.flatMap((child) => leafCommands(child, [...words, child.name()]))
}

/** The text of the document below the heading of a command, up to the next heading. */
function sectionOf(words: string): string | undefined {
  return doc
    .split(/^#{2,4} /m)
    .find((section) => section.startsWith(`\`hostmesh ${words}`) && /^`[^`]+`\n/.test(section))
}

/** What is said once, at the top, for all commands that have it. */
const intro = doc.slice(0, doc.indexOf('\n## '))
const shared = new Set([
  '--output',
  '--watch',
  '--interval',
  '--aggregator',
  '--token-file',
  '--ca-file',
  '--cert-file',
  '--key-file',
])

test('docs/cli.md has a section for every command, naming each of its options and arguments', async () => {
  const commands = leafCommands(await buildProgram())
  assert.ok(commands.length >= 12, 'the whole tree is looked at')
  for (const [words, command] of commands) {
    const section = sectionOf(words)
    assert.ok(section !== undefined, `docs/cli.md has no heading \`hostmesh ${words} …\``)
    for (const { short, long } of command.options) {
      const text = shared.has(long ?? '') ? `${section}\n${intro}` : section
      const isNamed = [short, long].some((name) => name !== undefined && text.includes(name))
      assert.ok(isNamed, `hostmesh ${words}: ${long} is not in docs/cli.md`)
    }
    for (const argument of command.registeredArguments)
      assert.ok(
        section.includes(argument.name().toUpperCase()),
        `hostmesh ${words}: ${argument.name()}`,
      )
  }
})

test('docs/cli.md has no section for a command that does not exist', async () => {
  const known = new Set(leafCommands(await buildProgram()).map(([words]) => words))
  const headings = [...doc.matchAll(/^#{2,4} `hostmesh ([^`]+)`$/gm)].map(([, words]) =>
    (words ?? '').replace(/ [[A-Z-].*$/, ''),
  )
  assert.deepEqual(
    headings.filter((words) => !known.has(words)),
    [],
  )
})

test('docs/cli.md lists every exit code', () => {
  for (const code of Object.values(exitCodes))
    assert.match(doc, new RegExp(`^\\| ${code} \\|`, 'm'))
})

test('a command loads no more than its own group, and help all of them', async () => {
  const names = async (words: string[]): Promise<string[]> =>
    (await buildProgram(words)).commands.map((command) => command.name())
  assert.ok(!(await names(['status'])).includes('ca'))
  const ofCa = await names(['ca', 'init'])
  assert.ok(ofCa.includes('ca') && !ofCa.includes('capture'))
  for (const words of [[], ['help'], ['--help'], ['stauts']]) {
    const all = await names(words)
    for (const name of ['run', 'status', 'config', 'ca', 'capture']) assert.ok(all.includes(name))
  }
})

test('no command ends the process itself: help of each, in other groups too, comes back here', async () => {
  for (const [words] of leafCommands(await buildProgram())) {
    const program = await buildProgram()
    let printed = ''
    const listen = (command: Command): void => {
      command.configureOutput({
        writeOut: (text) => {
          printed += text
        },
      })
      command.commands.forEach(listen)
    }
    listen(program)
    const parsing = program.parseAsync([...words.split(' '), '--help'], { from: 'user' })
    await assert.rejects(parsing, { code: 'commander.helpDisplayed' }, words)
    assert.match(printed, new RegExp(`^Usage: hostmesh ${words}`))
  }
})

test('each kind of failure has the exit code that docs/cli.md gives it', () => {
  const expected: [unknown, number][] = [
    [new MeshError('HM_ADMIN_UNREACHABLE', 'x'), 3],
    [new MeshError('HM_FLEET_UNREACHABLE', 'x'), 3],
    [new MeshError('HM_SERVICE_NOT_FOUND', 'x'), 5],
    [new MeshError('HM_HOST_NOT_FOUND', 'x'), 5],
    [new MeshError('HM_FLEET_DENIED', 'x'), 4],
    [new MeshError('HM_ADMIN_DENIED', 'x'), 4],
    [new MeshError('HM_CAPTURE_PERMISSION_DENIED', 'x'), 4],
    [new MeshError('HM_CA_NAME_INVALID', 'x'), 2],
    [new MeshError('HM_CONFIG_INVALID', 'x'), 2],
    [new MeshError('HM_USAGE_ADDRESS', 'x'), 2],
    [new MeshError('HM_LISTEN_FAILED', 'x'), 1],
    [Object.assign(new Error('x'), { code: 'EACCES' }), 4],
    [Object.assign(new Error('x'), { code: 'constructor' }), 1],
    [new Error('x'), 1],
    ['x', 1],
  ]
  for (const [thrown, code] of expected) assert.equal(exitCodeOf(thrown), code, String(thrown))
})

test('a failure is one sentence with its causes, and a hint where there is one', () => {
  const cause = new Error('connect ECONNREFUSED')
  assert.equal(
    describeFailure(new MeshError('HM_X_FAILED', 'Cannot do it', { cause, hint: 'Do that' })),
    'hostmesh: Cannot do it: connect ECONNREFUSED\n  hint: Do that\n',
  )
  assert.equal(describeFailure(new MeshError('HM_X_FAILED', 'Cannot')), 'hostmesh: Cannot\n')
  assert.match(describeFailure(new Error('a bug')), /^hostmesh: a bug\nError: a bug\n {4}at /)
})

test('what a cause says already is not said twice', () => {
  const cause = new Error('connect ECONNREFUSED 127.0.0.1:8500')
  const middle = new MeshError('HM_X', 'Cannot reach Consul: connect ECONNREFUSED 127.0.0.1:8500', {
    cause,
  })
  assert.equal(
    describeFailure(new MeshError('HM_Y', 'Cannot start', { cause: middle })),
    'hostmesh: Cannot start: Cannot reach Consul: connect ECONNREFUSED 127.0.0.1:8500\n',
  )
})

test('a document that a hint names is one that is there', () => {
  const text = describeFailure(
    new MeshError('HM_X', 'Cannot', { hint: 'See docs/configuration.md, or run: hostmesh help' }),
  )
  const path = /hint: See (\S+configuration\.md),/.exec(text)?.[1] ?? ''
  assert.ok(path.startsWith('/') && existsSync(path), text)
})

test('every command has an example in its help, and each example is a command line that parses', async () => {
  for (const [words] of leafCommands(await buildProgram())) {
    const own = examples[words] ?? []
    assert.ok(own.length > 0, `hostmesh ${words} has no example`)
    const help = await helpOf(words.split(' '))
    for (const [line] of own) {
      assert.ok(help.includes(`  hostmesh ${line}\n`), line)
      assert.ok(line === words || line.startsWith(`${words} `), `${line} is one of ${words}`)
      assert.equal(await runsAs(line), words)
    }
  }
})

test('there is no example for a command that does not exist', async () => {
  const known = leafCommands(await buildProgram()).map(([words]) => words)
  assert.deepEqual(
    Object.keys(examples).filter((words) => !known.includes(words)),
    [],
  )
})

/** The words of the command that a line would run; nothing is run. @throws if it does not parse */
async function runsAs(line: string): Promise<string> {
  const [command = ''] = line.split(' > ')
  const program = await buildProgram()
  let ran = ''
  for (const [words, leaf] of leafCommands(program)) {
    leaf.action(() => {
      ran = words
    })
  }
  await program.parseAsync(command.split(' '), { from: 'user' })
  return ran
}

/** The help of a command. */
async function helpOf(words: readonly string[]): Promise<string> {
  const program = await buildProgram()
  let printed = ''
  const listen = (command: Command): void => {
    command.configureOutput({
      writeOut: (text) => {
        printed += text
      },
    })
    command.commands.forEach(listen)
  }
  listen(program)
  await assert.rejects(program.parseAsync([...words, '--help'], { from: 'user' }))
  return printed
}

/** What the command prints, with the command tree as it is run. */
async function printedBy(...words: string[]): Promise<string> {
  const program = await buildProgram(words)
  let printed = ''
  const listen = (command: Command): void => {
    command.configureOutput({
      writeOut: (text) => {
        printed += text
      },
    })
    command.commands.forEach(listen)
  }
  listen(program)
  await program.parseAsync(words, { from: 'user' })
  return printed
}

test('help takes the words of any command, and knows what is none', async () => {
  assert.match(await printedBy('help'), /^Usage: hostmesh .*\n[^]*The daemon of this host:/)
  assert.match(await printedBy('help', 'ca', 'token'), /^Usage: hostmesh ca token /)
  assert.match(
    await printedBy('help', 'ca', 'rotate', 'finish'),
    /^Usage: hostmesh ca rotate finish /,
  )
  for (const words of [['nope'], ['ca', 'nope'], ['status', 'x']])
    await assert.rejects(printedBy('help', ...words), (thrown) => {
      assert.equal(exitCodeOf(thrown), 2)
      return true
    })
})

test('help marks the options that must be given, and no others', async () => {
  const help = await printedBy('help', 'ca', 'token')
  assert.match(help, /--directory <dir> .*\(required\)/)
  assert.match(help, /--host <name> .*\(required\)/)
  assert.doesNotMatch(help, /--ttl.*\(required\)/)
})

test('only unix:///path is an address', () => {
  assert.equal(socketPathOf('unix:///run/hostmesh/admin.sock'), '/run/hostmesh/admin.sock')
  for (const wrong of ['', '/run/x', 'unix:/x', 'unix://', 'unix://x', 'http://127.0.0.1'])
    assert.equal(socketPathOf(wrong), undefined, wrong)
})
