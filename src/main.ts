/**
 * The executable: passes the arguments to the command tree and sets the exit code. Does not force an exit: output to a
 * slow pipe is written completely, and the daemon ends when it has closed everything.
 */
import { exitCodes } from './cli/failure.ts'
import { runProgram } from './cli/program.ts'

// `hostmesh connections | head` closes the pipe early: that is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code === 'EPIPE') process.exit(0)
  process.stderr.write(`hostmesh: Cannot write to standard output: ${error.message}\n`)
  process.exitCode = exitCodes.failed
})
// An error on standard error cannot be reported; the exit code still shows the failure.
process.stderr.on('error', () => undefined)

const exitCode = await runProgram(process.argv.slice(2))
if (exitCode !== 0) process.exitCode = exitCode
