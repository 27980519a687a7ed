/**
 * How the kernel's tools are run: apart from the daemon's process group, with a bounded output, and failures by name.
 */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { createCommandRunner } from '../../src/controlplane/capture/command.ts'
import { errorCode } from '../../src/lib/errors.ts'

const run = createCommandRunner()

/** Process group and session, of a line of /proc/PID/stat. */
function groupOf(stat: string): readonly (string | undefined)[] {
  return stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .slice(2, 4)
}

test('a tool gets its input, and its status and output come back whatever they are', async () => {
  const said = await run('sh', ['-c', 'cat; echo bad >&2; exit 3'], 'good')
  assert.deepEqual(said, { status: 3, stdout: 'good', stderr: 'bad\n' })
})

test('a signal to the group of the daemon does not reach a tool', async () => {
  const { stdout } = await run('sh', ['-c', 'cat /proc/$$/stat'])
  const own = groupOf(readFileSync('/proc/self/stat', 'latin1'))
  const [group, session] = groupOf(stdout)
  assert.notEqual(group, own[0])
  assert.notEqual(session, own[1])
})

test('a tool that is missing, and one that is killed, are told apart', async () => {
  await assert.rejects(
    run('hostmesh-no-such-tool', []),
    (error) => errorCode(error) === 'HM_CAPTURE_TOOL_MISSING',
  )
  await assert.rejects(
    run('sh', ['-c', 'kill -9 $$']),
    (error) => errorCode(error) === 'HM_CAPTURE_TOOL_FAILED',
  )
})
