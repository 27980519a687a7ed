/**
 * `npm run bench:control`: how fast a change in Consul reaches the data path, and what the control plane's work
 * costs the traffic meanwhile. A real Consul, a real daemon, 1,000 services of 50,000 instances.
 *
 * Runs in a network namespace without a name, which is gone when its processes are. Ends with code 0 when everything
 * could be measured, whatever the figures say.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { describeError } from '../src/lib/errors.ts'
import { measureChanges } from './control/changes.ts'
import { measureDelay } from './control/delay.ts'
import { buildScene, type Scale } from './control/scene.ts'
import { run } from './site/process.ts'
import { requireTool } from './site/tools.ts'

const HELP = `Usage: npm run bench:control -- [options]

Measures, with a real Consul and a real daemon that follows every service:
  * the time from a change in Consul until a connection of an application meets it
  * the round trip of a connection through the daemon while the catalog changes, beside one without hostmesh
Needs root. Takes about three minutes.

  --services N    services that are followed (default 1000)
  --instances N   instances of all services together (default 50000)
  --changes N     changes that are timed, of each kind (default 100)
  --seconds N     length of each of the two traffic measurements (default 15)
  --json FILE     writes the figures there
`

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      services: { type: 'string', default: '1000' },
      instances: { type: 'string', default: '50000' },
      changes: { type: 'string', default: '100' },
      seconds: { type: 'string', default: '15' },
      json: { type: 'string' },
      inside: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    process.stdout.write(HELP)
    return 0
  }
  if (!values.inside) return await runInside(process.argv.slice(2))
  const scale: Scale = { services: Number(values.services), instances: Number(values.instances) }
  const directory = mkdtempSync(join(tmpdir(), 'hostmesh-bench-control-'))
  try {
    await run([requireTool('ip'), 'link', 'set', 'lo', 'up'])
    await using scene = await buildScene(scale, directory)
    const changes = await measureChanges(scene, Number(values.changes))
    const delay = await measureDelay(scene, Number(values.seconds) * 1_000)
    const results = { scale, load: scene.loadFigures, changes, delay }
    const text = `${JSON.stringify(results, null, 2)}\n`
    process.stdout.write(text)
    if (values.json !== undefined) writeFileSync(values.json, text)
    return 0
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

/** Runs this very program in a fresh network namespace. */
function runInside(args: readonly string[]): Promise<number> {
  const child = spawn(
    requireTool('unshare'),
    [
      '--net',
      '--',
      process.execPath,
      ...process.execArgv,
      import.meta.filename,
      '--inside',
      ...args,
    ],
    { stdio: 'inherit' },
  )
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => child.kill(signal))
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code) => resolve(code ?? 1))
  })
}

try {
  process.exitCode = await main()
} catch (error) {
  process.stderr.write(`bench:control: ${describeError(error)}\n`)
  process.exitCode = 1
}
