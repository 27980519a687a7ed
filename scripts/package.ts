/**
 * Makes what a host gets: `npm run package` writes .cache/package/hostmesh-VERSION-linux-ARCH.tar.gz and
 * its SHA-256 beside it, as sha256sum prints it, and prints the path of the first.
 *
 * The tarball holds one folder of its own name: compiled program, production packages, private Node, unit
 * files, manual pages and completion scripts. It is for the architecture of the machine that makes it, since npm installs only that. Equal inputs
 * make equal bytes: an installer sees by the checksum whether a host has it already. With --if-older nothing is
 * made where the tarball is newer than everything that goes into it.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  cpSync,
  existsSync,
  globSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'

import type { Lockfile } from './lockfile.ts'

const root = resolve(import.meta.dirname, '..')

/** Copied as they are. */
const files = [
  'LICENSE',
  'README.md',
  'SECURITY.md',
  'docs',
  'monitoring',
  'scripts/hostmesh',
  'scripts/node.sh',
  'systemd',
]

/** Parts of packages that nothing of ours reads: C headers, documents and sources of native parts. */
const unused = /^node_modules\/(node-linux-\w+\/(include|share|CHANGELOG\.md)|koffi\/(vendor|doc))$/

const version = (
  JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }
).version
const name = `hostmesh-${version}-linux-${process.arch}`
const target = join(root, '.cache/package')

const tarball = join(target, `${name}.tar.gz`)

mkdirSync(target, { recursive: true })
if (!process.argv.includes('--if-older') || isOlder()) make()
console.log(relative(process.cwd(), tarball))

function make(): void {
  const work = mkdtempSync(join(target, '.making-'))
  try {
    makeIn(work)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

function makeIn(work: string): void {
  const tree = join(work, name)
  mkdirSync(tree)
  compile(join(tree, 'dist'))
  run(process.execPath, [
    '--disable-warning=ExperimentalWarning',
    join(root, 'scripts/man.ts'),
    tree,
  ])
  for (const file of files) if (existsSync(join(root, file))) copy(file, tree)
  for (const place of productionPackages()) copy(place, tree)
  writeManifest(tree)
  proveItRuns(tree)
  const made = pack(work)
  const sum = createHash('sha256').update(readFileSync(made)).digest('hex')
  writeFileSync(join(work, 'sum'), `${sum}  ${name}.tar.gz\n`)
  // The sum first: between the two renames a reader is told of a mismatch, never given a wrong match.
  renameSync(join(work, 'sum'), `${tarball}.sha256`)
  renameSync(made, tarball)
}

/** Whether something that goes into the tarball has changed since; installed packages by npm's own record. */
function isOlder(): boolean {
  if (!existsSync(`${tarball}.sha256`) || !existsSync(tarball)) return true
  const madeAtMs = statSync(tarball).mtimeMs
  const made = ['scripts/build.ts', 'scripts/man.ts', 'scripts/manual-pages.ts']
  const single = ['package.json', ...made, 'node_modules/.package-lock.json']
  const inputs = [...files, ...single, 'src/**', 'systemd/**', 'scripts/package.ts']
  return globSync(inputs, { cwd: root }).some(
    (place) => statSync(join(root, place)).mtimeMs >= madeAtMs,
  )
}

/** Without source maps, which would name sources that are not in the package. */
function compile(into: string): void {
  run(process.execPath, [join(root, 'scripts/build.ts'), into])
}

function copy(place: string, tree: string): void {
  const to = join(tree, place)
  mkdirSync(dirname(to), { recursive: true })
  const isWanted = (from: string): boolean => !unused.test(relative(root, from))
  cpSync(join(root, place), to, { recursive: true, filter: isWanted })
}

/** The places of all packages that production needs here; those of other architectures are not installed. */
function productionPackages(): string[] {
  const lockfile = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8')) as Lockfile
  return Object.entries(lockfile.packages)
    .filter(([place, { dev }]) => place !== '' && dev !== true)
    .filter(([place, { optional }]) => {
      const isInstalled = existsSync(join(root, place))
      if (!isInstalled && optional !== true)
        throw new Error(`Cannot package ${place}: it is not installed; run: npm ci`)
      return isInstalled
    })
    .map(([place]) => place)
}

/** What the program reads (version, module type), without the scripts that only a checkout has. */
function writeManifest(tree: string): void {
  const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as object
  const wanted = [
    'name',
    'version',
    'description',
    'license',
    'type',
    'engines',
    'bin',
    'dependencies',
  ]
  const kept = Object.entries(manifest).filter(([key]) => wanted.includes(key))
  writeFileSync(
    join(tree, 'package.json'),
    `${JSON.stringify(Object.fromEntries(kept), null, 2)}\n`,
  )
}

/** The tree says its version, and its native part loads, with nothing of this checkout. */
function proveItRuns(tree: string): void {
  const options = { env: { PATH: '/usr/bin:/bin' }, encoding: 'utf8', timeout: 30_000 } as const
  const said = execFileSync(join(tree, 'scripts/hostmesh'), ['--version'], options).trim()
  if (said !== version) throw new Error(`The packaged program says '${said}', not ${version}`)
  const load = "require('koffi').load(null).func('int getpid()')()"
  execFileSync(join(tree, 'scripts/node.sh'), ['-e', load], { ...options, cwd: tree })
}

function pack(folder: string): string {
  const plain = join(folder, `${name}.tar`)
  const sameBytes = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner']
  const sameModes = ['--mode=u+rwX,go+rX,go-w', '--format=gnu']
  run('tar', ['-C', folder, ...sameBytes, ...sameModes, '-cf', plain, name])
  // -1: the Node executable makes up nearly all of it, and higher levels save little for much time.
  run('gzip', ['-n', '-1', plain])
  return `${plain}.gz`
}

function run(program: string, args: readonly string[]): void {
  execFileSync(program, args, { cwd: root, stdio: ['ignore', 2, 2], timeout: 300_000 })
}
