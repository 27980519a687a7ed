/**
 * Writes the manual pages and completion scripts, made from the command tree: `node scripts/man.ts FOLDER` fills
 * FOLDER/man/man1 and FOLDER/completions. `npm run package` does it for the tarball.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { completionScript } from '../src/cli/completion.ts'
import { buildProgram } from '../src/cli/program.ts'
import { manualPages } from './manual-pages.ts'

const target = resolve(process.argv[2] ?? '.cache/man')
const program = await buildProgram()
const pages = join(target, 'man/man1')
mkdirSync(pages, { recursive: true })
for (const { name, text } of manualPages(program)) writeFileSync(join(pages, `${name}.1`), text)
const completions = join(target, 'completions')
mkdirSync(completions, { recursive: true })
writeFileSync(join(completions, 'hostmesh'), completionScript('bash', program))
writeFileSync(join(completions, '_hostmesh'), completionScript('zsh', program))
writeFileSync(join(completions, 'hostmesh.fish'), completionScript('fish', program))
