/**
 * Loads the aggregator's configuration: either all of it is valid, or all problems are reported together. Relative paths
 * are resolved from the file's folder.
 */
import { dirname, resolve } from 'node:path'
import { MeshError } from '../lib/errors.ts'
import { readTextFile } from '../lib/read-text-file.ts'
import { formatProblems, parseYamlDocument } from '../lib/yaml-document.ts'
import { type AggregatorConfig, aggregatorConfigSchema } from './config.ts'
import { configProblems } from './config-rules.ts'

const MAX_CONFIG_BYTES = 1_024 * 1_024

/**
 * Reads a configuration file.
 * @throws MeshError HM_CONFIG_INVALID with every problem as `file:line:column: path: message`, HM_FILE_UNREADABLE
 */
export function loadAggregatorConfig(path: string): AggregatorConfig {
  const checked = checkAggregatorConfig(readTextFile(path, MAX_CONFIG_BYTES).text, path)
  if ('config' in checked) return checked.config
  const { problems } = checked
  const count = problems.length === 1 ? 'a problem' : `${problems.length} problems`
  throw new MeshError(
    'HM_CONFIG_INVALID',
    `Configuration ${path} has ${count}:\n  ${problems.join('\n  ')}`,
    { hint: 'See docs/observability.md' },
  )
}

/** Checks the text of a configuration; `path` is for messages and relative paths. Never throws. */
export function checkAggregatorConfig(
  text: string,
  path: string,
): { readonly config: AggregatorConfig } | { readonly problems: readonly string[] } {
  const parsed = parseYamlDocument(text, aggregatorConfigSchema)
  if ('problems' in parsed) return { problems: formatProblems(path, parsed.problems) }
  const { document } = parsed
  const config = withAbsolutePaths(document.value, dirname(resolve(path)))
  const problems = configProblems(config).map((problem) =>
    document.problemAt(problem.path, problem.message),
  )
  return problems.length === 0 ? { config } : { problems: formatProblems(path, problems) }
}

function withAbsolutePaths(config: AggregatorConfig, folder: string): AggregatorConfig {
  const absolute = (path: string): string => resolve(folder, path)
  const { listen, store, tls, access } = config
  const { tokens, clientCertificates, proxy } = access
  return {
    ...config,
    listen: { ...listen, socket: absolute(listen.socket) },
    store: { ...store, directory: absolute(store.directory) },
    ...(tls !== undefined && {
      tls: { certificate: absolute(tls.certificate), key: absolute(tls.key) },
    }),
    access: {
      ...access,
      ...(tokens !== undefined && { tokens: absolute(tokens) }),
      ...(clientCertificates !== undefined && {
        clientCertificates: { ...clientCertificates, roots: absolute(clientCertificates.roots) },
      }),
      ...(proxy !== undefined && {
        proxy: { ...proxy, ...(proxy.socket !== undefined && { socket: absolute(proxy.socket) }) },
      }),
    },
  }
}
