/**
 * How the programs that more than one place names are asked for their version.
 */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { requireTool } from '../site/tools.ts'

const execute = promisify(execFile)

/** nginx writes it to standard error. */
export async function nginxVersion(): Promise<string> {
  const { stderr } = await execute(requireTool('nginx'), ['-v'])
  return stderr.trim().replace('nginx version: ', '')
}

/** wrk gives its version only with an exit code of 1. */
export function wrkVersion(): Promise<string> {
  return new Promise((resolve) => {
    execFile(requireTool('wrk'), ['-v'], (_error, stdout, stderr) => {
      resolve(`${stdout}${stderr}`.split('\n')[0]?.split(' Copyright')[0] ?? 'wrk')
    })
  })
}
