/**
 * Makes what a browser loads of the dashboard, for `scripts/build.ts` and the tests. What a page needs at once is one file; charts are
 * another, loaded with the first one. Names are minified, since it is sent over networks; maps are for developers.
 */
import { copyFileSync, readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { gzipSync } from 'node:zlib'

import { build } from 'esbuild'

const root = resolve(import.meta.dirname, '..')
const source = join(root, 'src/dashboard')

/** Sizes as they are sent, gzipped. */
export interface DashboardSize {
  readonly totalBytes: number
  readonly parts: readonly { readonly file: string; readonly bytes: number }[]
}

/** Writes all files of the dashboard into a folder of their own. */
export async function buildDashboard(outdir: string, hasMaps: boolean): Promise<DashboardSize> {
  await build({
    absWorkingDir: root,
    entryPoints: [join(source, 'main.tsx'), join(source, 'main.css')],
    outdir,
    chunkNames: '[name]-[hash]',
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'browser',
    target: ['chrome123', 'firefox120', 'safari17.5'],
    tsconfig: join(source, 'tsconfig.json'),
    minify: true,
    legalComments: 'none',
    sourcemap: hasMaps ? 'linked' : false,
    logLevel: 'warning',
  })
  for (const file of ['index.html', 'icon.svg'])
    copyFileSync(join(source, file), join(outdir, file))
  const parts = readdirSync(outdir)
    .filter((file) => !file.endsWith('.map'))
    .map((file) => ({ file, bytes: gzipSync(readFileSync(join(outdir, file))).length }))
  return { totalBytes: parts.reduce((sum, { bytes }) => sum + bytes, 0), parts }
}
