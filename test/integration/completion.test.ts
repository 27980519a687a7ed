/**
 * The completion script of bash, asked by bash itself; those of other shells as far as they can be read.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { test } from 'node:test'
import { promisify } from 'node:util'
import { completionScript } from '../../src/cli/completion.ts'
import { buildProgram } from '../../src/cli/program.ts'
import { hostmesh } from './admin-fixtures.ts'

const run = promisify(execFile)

/** What bash offers for a line; its last word is completed, and empty after a space. */
async function complete(line: string): Promise<string[]> {
  const script = completionScript('bash', await buildProgram())
  const words = line.split(' ')
  const { stdout } = await run(
    'bash',
    [
      '--norc',
      '-c',
      `${script}
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _hostmesh; printf '%s\\n' "\${COMPREPLY[@]}"`,
      'bash',
      ...words,
    ],
    { cwd: '/etc' },
  )
  return stdout.split('\n').filter((word) => word !== '')
}

test('bash completes commands, nested commands, options and their values', async () => {
  assert.deepEqual(await complete('hostmesh fl'), ['fleet'])
  assert.deepEqual(
    (await complete('hostmesh ')).toSorted(),
    (await buildProgram()).commands.map((command) => command.name()).toSorted(),
  )
  assert.deepEqual(await complete('hostmesh fleet '), ['status', 'hosts', 'versions', 'risks'])
  assert.deepEqual(await complete('hostmesh ca rotate f'), ['finish'])
  assert.deepEqual(await complete('hostmesh edges --f'), ['--fleet'])
  assert.deepEqual(await complete('hostmesh edges -o '), ['table', 'wide', 'json', 'yaml'])
  assert.deepEqual(await complete('hostmesh ca status --output y'), ['yaml'])
  assert.deepEqual(await complete('hostmesh top --fleet --sort e'), ['errors'])
  assert.deepEqual(await complete('hostmesh completion '), ['bash', 'zsh', 'fish'])
  assert.ok((await complete('hostmesh status --')).includes('--addr'))
})

test('bash sees a command behind options with values, and takes no value for a command', async () => {
  assert.deepEqual(await complete('hostmesh --addr unix:///x fleet ri'), ['risks'])
  assert.deepEqual(await complete('hostmesh --addr fleet ri'), [])
  assert.deepEqual(await complete('hostmesh ca token --host status --serv'), ['--service'])
})

test('bash completes paths where a file belongs, and nothing where a name does', async () => {
  assert.deepEqual(
    await complete('hostmesh run --config /etc/host'),
    (await run('bash', ['-c', 'compgen -f /etc/host'])).stdout.trimEnd().split('\n'),
  )
  assert.ok((await complete('hostmesh config validate host')).includes('hostname'))
  assert.deepEqual(await complete('hostmesh edges --source '), [])
})

test('every command and option is in the script of every shell', async () => {
  const program = await buildProgram()
  for (const shell of ['bash', 'zsh', 'fish'] as const) {
    const { code, stdout } = await hostmesh(['completion', shell])
    assert.equal(code, 0)
    assert.equal(stdout.trimEnd(), completionScript(shell, program).trimEnd())
    for (const word of ['fleet', 'risks', 'rotate', 'simulate', 'default-policy'])
      assert.ok(stdout.includes(word), `${shell}: ${word}`)
  }
  assert.equal((await hostmesh(['completion', 'tcsh'])).code, 2)
})
