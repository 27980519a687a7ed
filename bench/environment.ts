/**
 * On what a run was made: without it, figures of two runs cannot be compared.
 */
import { cpus, loadavg, release, totalmem } from 'node:os'
import { TLS_POLICY } from './site/certificates.ts'
import { run } from './site/process.ts'
import { findTool } from './site/tools.ts'
import type { SubjectName } from './subject-names.ts'
import type { Subject } from './subjects/subject.ts'
import { nginxVersion, wrkVersion } from './subjects/versions.ts'

/** The header of the results. */
export interface Environment {
  readonly date: string
  readonly kernel: string
  readonly cpu: string
  readonly cpus: number
  readonly memoryGb: number
  /** Mean number of busy tasks in the minute before the run; more than a few tenths spoils it. */
  readonly loadBefore: number
  readonly runtime: string
  readonly commit: string | null
  readonly tls: string
  readonly topology: string
  readonly versions: Readonly<Record<string, string>>
}

/** Looks around. `subjects` are those that are not absent. */
export async function describeEnvironment(subjects: readonly Subject[]): Promise<Environment> {
  const processors = cpus()
  const versions: Record<string, string> = {
    load: await wrkVersion(),
    backend: await nginxVersion(),
  }
  for (const subject of subjects) versions[subject.name] = await versionOf(subject)
  return {
    date: new Date().toISOString(),
    kernel: release(),
    cpu: processors[0]?.model.trim() ?? 'unknown',
    cpus: processors.length,
    memoryGb: Math.round(totalmem() / 1e9),
    loadBefore: Number((loadavg()[0] ?? 0).toFixed(2)),
    runtime: `Node ${process.versions.node}, OpenSSL ${process.versions.openssl}`,
    commit: await commit(),
    tls: TLS_POLICY,
    topology:
      'wrk or curl -> hop A | veth between two network namespaces | hop B -> nginx, one process of one thread a hop',
    versions,
  }
}

async function versionOf(subject: Subject): Promise<string> {
  try {
    return await subject.version()
  } catch (error) {
    return `unknown (${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)})`
  }
}

async function commit(): Promise<string | null> {
  const git = findTool('git')
  if (git === undefined) return null
  try {
    const hash = await run([git, '-C', import.meta.dirname, 'rev-parse', '--short', 'HEAD'])
    const changes = await run([git, '-C', import.meta.dirname, 'status', '--porcelain'])
    return `${hash.trim()}${changes.trim() === '' ? '' : ' with changes'}`
  } catch {
    // A package without its repository: the version number says enough.
    return null
  }
}

/** The header as lines of text. */
export function environmentLines(environment: Environment): readonly string[] {
  const { cpu, cpus: count, memoryGb, kernel, versions } = environment
  const named = Object.entries(versions).filter(([name]) => !isHidden(name))
  return [
    `machine    ${cpu}, ${count} CPUs, ${memoryGb} GB, Linux ${kernel}, load before ${environment.loadBefore}`,
    `software   ${[...new Set(named.map(([, version]) => version))].join('; ')}; ${environment.runtime}`,
    `TLS        ${environment.tls}`,
    `path       ${environment.topology}`,
  ]
}

/** "No proxy" needs no version. */
function isHidden(name: string): boolean {
  const reference: SubjectName = 'direct'
  return name === reference
}
