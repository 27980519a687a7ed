/**
 * `npm run demo [-- --consul] [-- --keep]`: a mesh of three hosts on this machine, with real applications.
 *
 * The hosts are network namespaces; nothing outside of them is touched and nothing stays behind. As an
 * ordinary user it starts itself again as root of a user namespace of its own (demo/privilege.ts).
 */
import { parseArgs } from 'node:util'

import { findMissing } from './demo/preflight.ts'
import { obtainPrivilege, PrivilegeError } from './demo/privilege.ts'
import { tellStory } from './demo/story.ts'

const usage = `Usage: npm run demo [-- --consul] [-- --keep]
  --consul  services and certificates from a real Consul, in place of files
  --keep    leave everything running at the end, until Ctrl-C`

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: {
      consul: { type: 'boolean', default: false },
      keep: { type: 'boolean', default: false },
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
  const privilege = await obtainPrivilege(process.argv.slice(2))
  if ('exitCode' in privilege) return privilege.exitCode
  await tellStory({ consul: values.consul, keep: values.keep, means: privilege })
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
