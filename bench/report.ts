/**
 * From the results of an earlier run to the table and the picture of docs/performance.md.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { dirname, relative } from 'node:path'
import { MeshError } from '../src/lib/errors.ts'
import type { ReportOptions } from './options.ts'
import { BEGIN_MARKER, END_MARKER, insertReport, markdownReport } from './report/markdown.ts'
import { ratioPicture } from './report/svg.ts'
import { readResults } from './results.ts'

/**
 * Writes the picture beside the results, and the table into the document; without a document the table
 * goes to standard output. Throws HM_BENCH_RESULTS.
 */
export async function writeReport(options: ReportOptions): Promise<void> {
  const results = await readResults(options.resultsFile)
  const picture = `${options.resultsFile.replace(/\.json$/, '')}.svg`
  await writeFile(picture, ratioPicture(results.rows))
  if (options.into === undefined) {
    process.stdout.write(`${markdownReport(results, picture)}\n`)
    return
  }
  const link = relative(dirname(options.into), picture)
  const document = await readFile(options.into, 'utf8')
  const updated = insertReport(document, markdownReport(results, link))
  if (updated === undefined)
    throw new MeshError(
      'HM_BENCH_RESULTS',
      `Cannot put the report into ${options.into}: it lacks the markers`,
      { hint: `Add the lines "${BEGIN_MARKER}" and "${END_MARKER}" where it should stand.` },
    )
  await writeFile(options.into, updated)
}
