/**
 * `npm run demo [-- --consul] [-- --keep] [-- --dashboard]`: a mesh of three hosts on this machine, with real applications.
 *
 * The hosts are network namespaces; nothing outside of them is touched and nothing stays behind. As an
 * ordinary user it starts itself again as root of a user namespace of its own (demo/privilege.ts).
 */
import { parseArgs } from 'node:util'

import { showDashboard } from './demo/dashboard.ts'
import { findMissing } from './demo/preflight.ts'
import { obtainPrivilege, PrivilegeError } from './demo/privilege.ts'
import { tellStory } from './demo/story.ts'
import { openWindow } from './demo/window.ts'

const usage = `Usage: npm run demo [-- --consul] [-- --keep | --dashboard]
  --consul     services and certificates from a real Consul, in place of files
  --keep       leave everything running at the end, until Ctrl-C
  --dashboard  the hosts report to an aggregator: steady traffic and its picture, until Ctrl-C`

/** Where the dashboard is on the machine of the user, unless another program has the port. */
const DASHBOARD_PORT = 15_190

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      consul: { type: 'boolean', default: false },
      keep: { type: 'boolean', default: false },
      dashboard: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) {
    console.log(usage)
    return 0
  }
  const missing = findMissing(values.consul)
  if (missing.length > 0) {
    console.error(
      `Cannot run the demo: ${missing.map(({ command }) => command).join(', ')} missing`,
    )
    const packages = [...new Set(missing.map((one) => one.package))]
    console.error(
      `  as root, run: apt-get install -y --no-install-recommends ${packages.join(' ')}`,
    )
    return 1
  }
  const privilege = await obtainPrivilege(process.argv.slice(2), async () =>
    values.dashboard ? openWindow(DASHBOARD_PORT) : undefined,
  )
  if ('exitCode' in privilege) return privilege.exitCode
  const options = { consul: values.consul, keep: values.keep, means: privilege }
  if (privilege.window === undefined) await tellStory(options)
  else await showDashboard(options, privilege.window)
  return 0
}

try {
  process.exitCode = await main()
} catch (error) {
  const isOurs = error instanceof PrivilegeError
  console.error(isOurs ? error.message : `\nThe demo failed: ${describe(error)}`)
  process.exitCode = 1
}

function describe(error: unknown): string {
  if (error instanceof SuppressedError)
    return `${describe(error.suppressed)}\nand then, while cleaning up: ${describe(error.error)}`
  return error instanceof Error ? (error.stack ?? error.message) : String(error)
}
