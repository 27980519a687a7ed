/**
 * The results of a run, in memory and as files: rows as a JSON array, and beside it, in a file of its own,
 * the header that says on what machine and with which programs they were taken.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'
import { MeshError } from '../src/lib/errors.ts'
import type { Environment } from './environment.ts'
import type { Row } from './measure/statistics.ts'
import type { ScenarioName } from './scenario-names.ts'
import type { SubjectName } from './subject-names.ts'

/** A sample that failed, or a subject that would not start (then without scenario). */
export interface Failure {
  readonly subject: SubjectName
  readonly scenario: ScenarioName | null
  readonly message: string
}

/** What stands beside the rows. */
export interface Header {
  readonly environment: Environment
  readonly rounds: number
  readonly absent: Readonly<Partial<Record<SubjectName, string>>>
  readonly failures: readonly Failure[]
}

/** All of a run. */
export interface Results {
  readonly header: Header
  readonly rows: readonly Row[]
}

/** Where the header of the rows in `file` is. */
export function headerFile(file: string): string {
  return `${file.replace(/\.json$/, '')}.environment.json`
}

/** Writes both files. */
export async function writeResults(file: string, results: Results): Promise<void> {
  await mkdir(dirname(file), { recursive: true })
  const rows = results.rows.map((row) => `  ${JSON.stringify(row)}`).join(',\n')
  await writeFile(file, `[\n${rows}\n]\n`)
  await writeFile(headerFile(file), `${JSON.stringify(results.header, null, 2)}\n`)
}

/** Reads both files back. Throws HM_BENCH_RESULTS. */
export async function readResults(file: string): Promise<Results> {
  const rows = await readJson(file)
  if (!Array.isArray(rows))
    throw new MeshError('HM_BENCH_RESULTS', `Cannot read results from ${file}: not a list of rows`)
  return {
    rows: rows as readonly Row[],
    header: (await readJson(headerFile(file))) as Header,
  }
}

async function readJson(file: string): Promise<unknown> {
  try {
    return JSON.parse(await readFile(file, 'utf8')) as unknown
  } catch (error) {
    throw new MeshError('HM_BENCH_RESULTS', `Cannot read results from ${file}`, {
      cause: error,
      hint: 'Give the file that a run wrote with --json; its .environment.json must lie beside it.',
    })
  }
}
