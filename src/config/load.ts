/**
 * Loads a {@link Config} from a file and the environment; apart from lib/systemd.ts the only reader of `process.env`.
 *
 * Either the whole configuration is valid or all problems are reported together; it is never applied in part. Relative
 * paths are resolved from the file's folder, not from the daemon's working folder. Consul's usual environment variables
 * fill in what the file leaves out.
 */
import { dirname, resolve } from 'node:path'
import { describeError, MeshError } from '../lib/errors.ts'
import { readTextFile, type TextFile } from '../lib/read-text-file.ts'
import { type DocumentProblem, formatProblems, parseYamlDocument } from '../lib/yaml-document.ts'
import { type Environment, withConsulEnvironment } from './consul-environment.ts'
import { type Config, configSchema } from './schema.ts'
import { validateConfig } from './validate.ts'

/** Result of {@link checkConfig}: a valid configuration, or one line for each problem. */
export type CheckedConfig =
  | { readonly config: Config }
  | {
      readonly problems: readonly string[]
      /** Set when the file cannot be read: the reason, and what to do. */
      readonly unreadable?: MeshError
    }

/** Maximum size of a configuration; a thousand services need about 300 KiB. */
const MAX_CONFIG_BYTES = 1024 * 1024

/**
 * Reads a configuration file.
 * @throws MeshError HM_CONFIG_INVALID, with every problem as `file:line:column: path: message`, or with the reason why
 *   the file cannot be read.
 */
export function loadConfig(path: string, env: Environment = process.env): Config {
  const checked = checkConfig(path, env)
  if ('config' in checked) return checked.config
  const { problems, unreadable } = checked
  if (unreadable !== undefined) throw unreadable
  const count = problems.length === 1 ? 'a problem' : `${problems.length} problems`
  throw new MeshError(
    'HM_CONFIG_INVALID',
    `Configuration ${path} has ${count}:\n  ${problems.join('\n  ')}`,
    { hint: 'See docs/configuration.md, or run: hostmesh config schema' },
  )
}

/** Reads a configuration file; returns problems instead of throwing. */
export function checkConfig(path: string, env: Environment = process.env): CheckedConfig {
  let file: TextFile
  try {
    file = readTextFile(path, MAX_CONFIG_BYTES)
  } catch (thrown) {
    const message = describeError(thrown)
    const hint = thrown instanceof MeshError ? thrown.hint : undefined
    const unreadable = new MeshError(
      'HM_CONFIG_INVALID',
      message,
      hint === undefined ? {} : { hint },
    )
    return { problems: [message], unreadable }
  }
  return checkConfigText(file.text, { path, env, isReadableByAll: (file.mode & 0o004) !== 0 })
}

/** The origin of a configuration text. */
export interface ConfigOrigin {
  /** Name of the file, for messages and for relative paths. */
  readonly path: string
  readonly env: Environment
  /** Whether any user of the machine may read the file; it must then not contain a secret. */
  readonly isReadableByAll: boolean
}

/** Checks the text of a configuration. Never throws, whatever the text. */
export function checkConfigText(text: string, origin: ConfigOrigin): CheckedConfig {
  const parsed = parseYamlDocument(text, configSchema)
  if ('problems' in parsed) return { problems: formatProblems(origin.path, parsed.problems) }
  const { document } = parsed
  const problems: DocumentProblem[] = []
  const filled = withConsulEnvironment(
    withAbsolutePaths(document.value, dirname(resolve(origin.path))),
    (key) => document.has(['catalog', key]),
    origin.env,
  )
  const { config } = filled
  for (const message of filled.problems) problems.push({ position: undefined, path: [], message })
  if (origin.isReadableByAll && document.has(['catalog', 'token']))
    problems.push(
      document.problemAt(
        ['catalog', 'token'],
        'Every user of this machine may read the file; run: chmod o-r FILE, or use tokenFile',
      ),
    )
  if (origin.isReadableByAll && hasSecretHeader(config))
    problems.push(
      document.problemAt(
        ['metrics', 'otlp', 'headers'],
        'Every user of this machine may read the file; run: chmod o-r FILE',
      ),
    )
  for (const { path, message } of validateConfig(config))
    problems.push(document.problemAt(path, message))
  return problems.length === 0 ? { config } : { problems: formatProblems(origin.path, problems) }
}

function hasSecretHeader({ metrics }: Config): boolean {
  return Object.keys(metrics.otlp?.headers ?? {}).some((name) =>
    /auth|token|key|secret|password|cookie/i.test(name),
  )
}

function withAbsolutePaths(config: Config, folder: string): Config {
  const absolute = (path: string): string => resolve(folder, path)
  const { catalog, certificates, admin, state } = config
  return {
    ...config,
    catalog:
      catalog.kind === 'file'
        ? { ...catalog, path: absolute(catalog.path) }
        : {
            ...catalog,
            ...(catalog.tokenFile !== undefined && { tokenFile: absolute(catalog.tokenFile) }),
            ...(catalog.caFile !== undefined && { caFile: absolute(catalog.caFile) }),
            ...(catalog.certFile !== undefined && { certFile: absolute(catalog.certFile) }),
            ...(catalog.keyFile !== undefined && { keyFile: absolute(catalog.keyFile) }),
          },
    certificates: withAbsoluteCertificatePaths(certificates, absolute),
    admin: { ...admin, socket: absolute(admin.socket) },
    state: { ...state, directory: absolute(state.directory) },
  }
}

function withAbsoluteCertificatePaths(
  certificates: Config['certificates'],
  absolute: (path: string) => string,
): Config['certificates'] {
  switch (certificates.kind) {
    case 'consul':
      return certificates
    case 'files': {
      const { directory, certificate, key, roots } = certificates
      return {
        ...certificates,
        ...(directory !== undefined && { directory: absolute(directory) }),
        ...(certificate !== undefined && { certificate: absolute(certificate) }),
        ...(key !== undefined && { key: absolute(key) }),
        ...(roots !== undefined && { roots: absolute(roots) }),
      }
    }
    case 'builtin': {
      const { directory, tokenFile } = certificates
      return {
        ...certificates,
        directory: absolute(directory),
        ...(tokenFile !== undefined && { tokenFile: absolute(tokenFile) }),
      }
    }
    default:
      return certificates satisfies never
  }
}
