/**
 * Makes the program that hosts run: `node scripts/build.ts [FOLDER]` writes it to dist, or to FOLDER without maps.
 *
 * The programs of all threads are bundled with what they use, without comments and white space: the text of a program stays in
 * memory as long as it runs, and a file less is a file less to open (docs/performance.md, "Memory"). Names stay, for profiles and
 * stack traces. koffi stays a package, since it loads its native part from its own folder. Types are not looked at: `npm run check`
 * is for that. The dashboard (dist/dashboard) is bundled for browsers: what a page needs at once, and what it loads later.
 */
import { renameSync, rmSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { build } from 'esbuild'

import { buildDashboard } from './build-dashboard.ts'

const root = resolve(import.meta.dirname, '..')
const target = resolve(process.argv[2] ?? join(root, 'dist'))
const making = `${target}.making-${process.pid}`

try {
  await build({
    absWorkingDir: root,
    // As deep as in src: what is found by a path of its own file (package.json, docs, the worker) is found here, too.
    entryPoints: [
      { in: 'src/main.ts', out: 'program/main' },
      { in: 'src/dataplane/worker.ts', out: 'dataplane/worker' },
      { in: 'src/aggregator/store-thread.ts', out: 'aggregator/store-thread' },
    ],
    outdir: making,
    chunkNames: 'program/[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node24',
    // Left to Node. As esbuild writes it for older ones, a loop throws an error of an earlier round again.
    supported: { using: true },
    external: ['koffi'],
    minifyWhitespace: true,
    minifySyntax: true,
    legalComments: 'none',
    sourcemap: process.argv[2] === undefined ? 'linked' : false,
    // Packages of the older kind ask for Node's modules by require().
    banner: {
      js: "import{createRequire as hostmeshRequire}from'node:module';const require=hostmeshRequire(import.meta.url);",
    },
    logLevel: 'warning',
  })
  const { totalBytes, parts } = await buildDashboard(
    join(making, 'dashboard'),
    process.argv[2] === undefined,
  )
  const listed = parts.map(({ file, bytes }) => `${file} ${(bytes / 1_000).toFixed(1)}`)
  console.log(`dashboard: ${(totalBytes / 1_000).toFixed(1)} KB gzipped (${listed.join(', ')})`)
  rmSync(target, { recursive: true, force: true })
  renameSync(making, target)
} finally {
  rmSync(making, { recursive: true, force: true })
}
