/**
 * Finds the programs the benchmark runs. Fixed directories instead of PATH: an ordinary root shell on
 * Debian often lacks the sbin ones.
 */
import { accessSync, constants } from 'node:fs'
import { MeshError } from '../../src/lib/errors.ts'

const DIRECTORIES = [
  '/usr/local/sbin',
  '/usr/local/bin',
  '/usr/sbin',
  '/usr/bin',
  '/sbin',
  '/bin',
] as const

/** Absolute path of an executable, or undefined when this machine has none of that name. */
export function findTool(name: string): string | undefined {
  return DIRECTORIES.map((directory) => `${directory}/${name}`).find(isExecutable)
}

/** Absolute path of an executable without which the benchmark cannot run. Throws HM_BENCH_TOOL_MISSING. */
export function requireTool(name: string): string {
  const path = findTool(name)
  if (path !== undefined) return path
  throw new MeshError('HM_BENCH_TOOL_MISSING', `Cannot find the program ${name}`, {
    hint: 'Run "npm run setup", or install the Debian package that has it.',
  })
}

/** Whether `path` is there and may be executed. */
function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}
