/**
 * Runs the kernel's tools (nft, iptables, ipset, ip, ss, id) with a deadline. The only other process that capture
 * starts is the nft that owns tables (table-owner.ts). Replace the runner if rules belong to another network namespace.
 */
import { spawn } from 'node:child_process'
import { describeError, errorCode, MeshError } from '../../lib/errors.ts'

/** How a tool ended. A status other than 0 is not an exception: the caller interprets it. */
export interface CommandResult {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

/** Runs one tool with `input` on standard input. Throws only HM_CAPTURE_TOOL_MISSING and HM_CAPTURE_TIMEOUT. */
export type RunCommand = (
  tool: string,
  args: readonly string[],
  input?: string,
) => Promise<CommandResult>

/** Where tools are searched for, regardless of the caller's PATH: a service's PATH may lack sbin. */
export const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/**
 * Environment of the tools. An interactive nft writes its history into HOME, or into the root folder without HOME: this
 * value prevents both.
 */
export const TOOL_ENVIRONMENT = { PATH: SYSTEM_PATH, LC_ALL: 'C', HOME: '/dev/null' }

/** Tools wait up to 5 s for the lock of iptables; a tool that takes longer than this deadline hangs. */
const DEADLINE_MS = 15_000

/** Enough for a host with tens of thousands of foreign rules. */
const MAX_OUTPUT_BYTES = 128 * 1024 * 1024

/** Debian packages by tool; other distributions use the same names. */
const PACKAGES: Record<string, string> = {
  ipset: 'ipset',
  nft: 'nftables',
  ip: 'iproute2',
  ss: 'iproute2',
  id: 'coreutils',
}

/**
 * A runner that finds tools in `searchPath` (colon-separated folders). Tools run in a session of their own: a signal
 * to the daemon's process group, as from Ctrl-C or a shell's `kill %1`, must not end a tool half-way.
 */
export function createCommandRunner(searchPath: string = SYSTEM_PATH): RunCommand {
  return (tool, args, input = '') =>
    new Promise((resolve, reject) => {
      const child = spawn(tool, [...args], {
        env: { ...TOOL_ENVIRONMENT, PATH: searchPath },
        detached: true,
        stdio: 'pipe',
      })
      // Not the timeout option of spawn: its timer continues for a tool that could not be started.
      const deadline = setTimeout(() => child.kill('SIGKILL'), DEADLINE_MS)
      const output: Record<'stdout' | 'stderr', Buffer[]> = { stdout: [], stderr: [] }
      let length = 0
      let isTooLong = false
      for (const name of ['stdout', 'stderr'] as const)
        child[name].on('data', (chunk: Buffer) => {
          length += chunk.length
          isTooLong ||= length > MAX_OUTPUT_BYTES
          if (isTooLong) child.kill('SIGKILL')
          else output[name].push(chunk)
        })
      child.on('error', (error) => {
        clearTimeout(deadline)
        reject(commandError(tool, error))
      })
      child.on('close', (status, signal) => {
        clearTimeout(deadline)
        const text = (chunks: readonly Buffer[]): string => Buffer.concat(chunks).toString('utf8')
        if (status !== null)
          resolve({ status, stdout: text(output.stdout), stderr: text(output.stderr) })
        else if (isTooLong) reject(commandError(tool, new Error('its output is too long')))
        else {
          const error = new Error(`it was ended by ${signal}`)
          reject(commandError(tool, Object.assign(error, { killed: child.killed })))
        }
      })
      // A tool that exits before it has read its input causes an error here; its status is the result.
      child.stdin.on('error', () => undefined)
      child.stdin.end(input)
    })
}

function commandError(
  tool: string,
  error: Error & { code?: number | string | null; killed?: boolean },
): MeshError {
  if (error.code === 'ENOENT' || error.code === 'EACCES')
    return new MeshError('HM_CAPTURE_TOOL_MISSING', `Cannot run ${tool}: it is not installed`, {
      cause: error,
      hint: `Install the package ${PACKAGES[tool] ?? 'iptables'}, or set capture.mode: off and use upstream ports`,
    })
  if (error.killed === true)
    return new MeshError(
      'HM_CAPTURE_TIMEOUT',
      `${tool} did not finish within ${DEADLINE_MS / 1000} s and was stopped`,
      {
        cause: error,
        hint: 'See how busy the host is, how many rules it has (nft list ruleset), and whether another program holds the lock of iptables',
      },
    )
  return new MeshError('HM_CAPTURE_TOOL_FAILED', `Cannot run ${tool}`, { cause: error })
}

/** Runs an operation that is optional where the tool is not installed, and adds a note when it was skipped. */
export async function ignoreMissingTool(
  notes: string[],
  operation: () => Promise<unknown>,
): Promise<void> {
  try {
    await operation()
  } catch (error) {
    if (errorCode(error) !== 'HM_CAPTURE_TOOL_MISSING') throw error
    notes.push(`${describeError(error)}; nothing of that kind can be in place`)
  }
}
