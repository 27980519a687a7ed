/**
 * Completes package-lock.json where it was made against a registry mirror that lacks some packages:
 * `sh scripts/node.sh scripts/complete-lockfile.ts`, after npm install added or changed a dependency.
 *
 * npm install passes over an optional package that it cannot find, but npm ci then calls the lockfile
 * out of sync. Those packages are builds for other platforms; each gets an entry that says for which,
 * so that npm ci leaves it alone here and fetches it (by version, without a hash) there.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { type LockedPackage, type Lockfile, missingFromLockfile } from './lockfile.ts'

const path = join(resolve(import.meta.dirname, '..'), 'package-lock.json')
const lockfile = JSON.parse(readFileSync(path, 'utf8')) as Lockfile
const missing = missingFromLockfile(lockfile)
const packages = { ...lockfile.packages }
for (const { name, version, parent } of missing)
  packages[`node_modules/${name}`] = {
    version,
    ...platformOf(name),
    ...inherited(parent),
    optional: true,
  }
const sorted = Object.fromEntries(
  Object.entries(packages).toSorted(([a], [b]) => a.localeCompare(b, 'en')),
)
writeFileSync(path, `${JSON.stringify({ ...lockfile, packages: sorted }, null, 2)}\n`)
console.log(`${missing.length} entries added`)

/** What such a package's name says: `@scope/binding-linux-x64-musl`, `@scope/darwin-arm64`. */
function platformOf(name: string): Pick<LockedPackage, 'os' | 'cpu' | 'libc'> {
  const match =
    /(aix|android|darwin|freebsd|linux|netbsd|openbsd|openharmony|sunos|win32)-([a-z0-9]+)(?:-(\w+))?$/.exec(
      name,
    )
  const [, os, cpu, abi = ''] = match ?? []
  if (os === undefined || cpu === undefined)
    throw new Error(`Cannot tell the platform of ${name}; add it to package-lock.json by hand`)
  const libc = abi.startsWith('musl') ? ['musl'] : abi.startsWith('gnu') ? ['glibc'] : undefined
  return { os: [os], cpu: [cpu], ...(libc === undefined ? {} : { libc }) }
}

function inherited(parent: LockedPackage): Pick<LockedPackage, 'dev' | 'license'> {
  const { dev, license } = parent
  return { ...(dev === undefined ? {} : { dev }), ...(license === undefined ? {} : { license }) }
}
