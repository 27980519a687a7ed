/**
 * From a file and the environment to a {@link Config}; the only reader of `process.env`.
 *
 * Either the whole configuration is sound or every problem is named at once; nothing is half applied.
 * Relative paths in the file are taken from the file's own folder, so that the daemon's working folder
 * does not matter. Consul's usual environment variables fill what the file leaves out.
 */
import { dirname, resolve } from 'node:path'
import { describeError, MeshError } from '../lib/errors.ts'
import { readTextFile, type TextFile } from '../lib/read-text-file.ts'
import { type DocumentProblem, formatProblems, parseYamlDocument } from '../lib/yaml-document.ts'
import { type Environment, withConsulEnvironment } from './consul-environment.ts'
import { type Config, configSchema } from './schema.ts'
import { validateConfig } from './validate.ts'

/** Outcome of {@link checkConfig}: a sound configuration, or one line for each problem. */
export type CheckedConfig =
  | { readonly config: Config }
  | {
      readonly problems: readonly string[]
      /** Where there is no text to find problems in: why, and what to do. */
      readonly unreadable?: MeshError
    }

/** A configuration beyond this is a mistake; a thousand services need about 300 KiB. */
const MAX_CONFIG_BYTES = 1024 * 1024

/**
 * Reads a configuration file.
 * @throws MeshError HM_CONFIG_INVALID, naming every problem as `file:line:column: path: message`, or why the file cannot be read.
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

/** Reads a configuration file and reports instead of throwing. */
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

/** Where a configuration text came from. */
export interface ConfigOrigin {
  /** Name of the file, for messages and for relative paths. */
  readonly path: string
  readonly env: Environment
  /** Whether any user of the machine may read the file: then it must hold no secret. */
  readonly isReadableByAll: boolean
}

/** Checks a configuration that has been read already. Never throws, whatever the text. */
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
  for (const { path, message } of validateConfig(config))
    problems.push(document.problemAt(path, message))
  return problems.length === 0 ? { config } : { problems: formatProblems(origin.path, problems) }
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
