/**
 * Checks of Consul config entries and catalog files that need no Consul: docs/policy-lint.md. Pure.
 */
import { decodeCatalog } from '../../controlplane/catalog/file/decode.ts'
import { describeError } from '../../lib/errors.ts'
import { isRecord } from '../../lib/json-value.ts'
import { fromKubernetes, isCatalogFile, parseDocuments, withConsulKeys } from '../intention-file.ts'
import { lintIntentions } from './lint-intentions.ts'
import { lintRouting } from './lint-routing.ts'
import type { Entry, Finding, LintCode } from './lint-rules.ts'

/** A file and its text. */
export interface LintFile {
  readonly name: string
  readonly text: string
}

/** All findings in all files, which are judged together: a rule may be made void by one in another file. */
export function lint(files: readonly LintFile[]): Finding[] {
  const entries: Entry[] = []
  const findings = files.flatMap((file) => readFile(file, entries))
  return [...findings, ...lintIntentions(entries), ...lintRouting(entries)].toSorted(
    (a, b) =>
      files.findIndex(({ name }) => name === a.file) -
        files.findIndex(({ name }) => name === b.file) || a.code.localeCompare(b.code),
  )
}

/** Adds the entries of a file; returns what keeps it from being read. */
function readFile({ name, text }: LintFile, entries: Entry[]): Finding[] {
  const unreadable = (message: string, code: LintCode = 'HM0001'): Finding => ({
    code,
    severity: 'error',
    file: name,
    where: '-',
    message,
  })
  let documents: unknown[]
  try {
    documents = parseDocuments(text, name)
  } catch (error) {
    return [unreadable(describeError(error))]
  }
  const [first] = documents
  if (documents.length === 1 && isCatalogFile(first)) {
    const decoded = decodeCatalog(text, name)
    if ('problems' in decoded) {
      // A name or an action that is wrong has a code of its own, beside the problem of the file.
      const known = lintableRules(first)
      entries.push(...known.map((rule) => entryOf(name, rule)))
      return decoded.problems.map((problem) => unreadable(problem, 'HM3001'))
    }
    entries.push(...lintableRules(first).map((rule) => entryOf(name, rule)))
    return []
  }
  return documents.flat().flatMap((raw, index) => {
    const value = withConsulKeys(raw)
    if (!isRecord(value)) return [unreadable(`Entry ${index + 1} is not an object`)]
    if (typeof value['Kind'] !== 'string' && !('SourceName' in value))
      return [unreadable(`Entry ${index + 1} has no Kind`)]
    entries.push(
      entryOf(name, value['Kind'] === 'ServiceIntentions' ? kubernetesIntentions(value) : value),
    )
    return []
  })
}

function kubernetesIntentions(value: Entry['value']): Entry['value'] {
  return { ...fromKubernetes(value), Kind: 'service-intentions' }
}

/** The rules of a catalog file, each as an entry of its own. */
function lintableRules(catalog: unknown): Entry['value'][] {
  const rules = isRecord(catalog) ? catalog['intentions'] : undefined
  return Array.isArray(rules) ? rules.filter(isRecord) : []
}

function entryOf(file: string, value: Entry['value']): Entry {
  const { Kind: kind, Name: name } = value
  return {
    file,
    kind: typeof kind === 'string' ? kind : 'intention',
    name: typeof name === 'string' ? name : '',
    value,
  }
}
