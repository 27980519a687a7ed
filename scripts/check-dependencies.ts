/**
 * Checks what the project depends on: `node scripts/check-dependencies.ts [--write]`.
 *
 * docs/dependencies.txt is the whole tree of packages that reach production, so that a new one shows
 * in review; `--write` refreshes it. Versions are exact, the lockfile names no registry host (any
 * mirror serves it), and every direct runtime dependency has its reason in docs/decisions/.
 */
import { execFileSync } from 'node:child_process'
import { globSync, readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { isDeepStrictEqual } from 'node:util'

import { type Lockfile, missingFromLockfile } from './lockfile.ts'

const root = resolve(import.meta.dirname, '..')
const listPath = 'docs/dependencies.txt'

interface Manifest {
  readonly dependencies?: Readonly<Record<string, string>>
  readonly devDependencies?: Readonly<Record<string, string>>
  readonly optionalDependencies?: Readonly<Record<string, string>>
}

const problems: string[] = []
const manifest = JSON.parse(read('package.json')) as Manifest
const runtime = { ...manifest.dependencies, ...manifest.optionalDependencies }

for (const [name, version] of Object.entries({ ...runtime, ...manifest.devDependencies }))
  if (!/^\d+\.\d+\.\d+$/.test(version))
    problems.push(`package.json: ${name} is '${version}', not one exact version`)

const lockfile = JSON.parse(read('package-lock.json')) as Lockfile
for (const kind of ['dependencies', 'devDependencies', 'optionalDependencies'] as const)
  if (!isDeepStrictEqual(lockfile.packages['']?.[kind] ?? {}, manifest[kind] ?? {}))
    problems.push(`package-lock.json: ${kind} are not those of package.json; run npm install`)
const hosts = Object.entries(lockfile.packages).filter(([, entry]) => entry.resolved !== undefined)
for (const [name] of hosts)
  problems.push(
    `package-lock.json: ${name} names a registry host; the .npmrc of this repository prevents that`,
  )
for (const { name } of missingFromLockfile(lockfile))
  problems.push(
    `package-lock.json: no entry for ${name}, so npm ci fails; run scripts/complete-lockfile.ts`,
  )

const decisions = globSync('docs/decisions/*.md', { cwd: root }).map(read).join('\n')
for (const name of Object.keys(runtime))
  if (!decisions.includes(`\`${name}\``))
    problems.push(`docs/decisions/: no reason is given for the runtime dependency \`${name}\``)

const list = listDependencies()
if (process.argv.includes('--write')) writeFileSync(join(root, listPath), list)
else if (tryRead(listPath) !== list)
  problems.push(`${listPath} is not what npm ls says; run npm run docs and look at the difference`)

for (const problem of problems) console.error(problem)
process.exitCode = problems.length > 0 ? 1 : 0

/** From the lockfile, not from node_modules: the same on every machine and processor. */
function listDependencies(): string {
  const tree = execFileSync(
    'npm',
    ['ls', '--all', '--omit=dev', '--package-lock-only', '--unicode=true', '--color=false'],
    { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'], timeout: 60_000 },
  )
  // The first line is "hostmesh@VERSION /path/of/this/checkout".
  const lines = tree.trimEnd().split('\n').slice(1)
  return `${lines.map((line) => line.trimEnd()).join('\n')}\n`
}

function read(path: string): string {
  return readFileSync(join(root, path), 'utf8')
}

function tryRead(path: string): string | undefined {
  try {
    return read(path)
  } catch {
    return undefined
  }
}
