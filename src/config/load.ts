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
import {
  type DocumentProblem,
  formatProblems,
  parseYamlDocument,
  type YamlDocument,
} from '../lib/yaml-document.ts'
import { type Config, configSchema, consulAddress } from './schema.ts'
import { validateConfig } from './validate.ts'

/** Environment variables by name, as in `process.env`. */
export type Environment = Readonly<Record<string, string | undefined>>

/** Outcome of {@link checkConfig}: a sound configuration, or one line for each problem. */
export type CheckedConfig = { readonly config: Config } | { readonly problems: readonly string[] }

/** A configuration beyond this is a mistake; a thousand services need about 300 KiB. */
const MAX_CONFIG_BYTES = 1024 * 1024

/**
 * Reads a configuration file.
 * @throws MeshError HM_CONFIG_INVALID, naming every problem as `file:line:column: path: message`.
 */
export function loadConfig(path: string, env: Environment = process.env): Config {
  const checked = checkConfig(path, env)
  if ('config' in checked) return checked.config
  const { problems } = checked
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
    return { problems: [describeError(thrown)] }
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
  const config = withEnvironment(
    withAbsolutePaths(document.value, dirname(resolve(origin.path))),
    document,
    origin.env,
    problems,
  )
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

/** Fills what the file does not say about the Consul agent from the variables that Consul's own CLI reads. */
function withEnvironment(
  config: Config,
  document: YamlDocument<Config>,
  env: Environment,
  problems: DocumentProblem[],
): Config {
  const { catalog } = config
  if (catalog.kind !== 'consul') return config
  const isGiven = (key: string): boolean => document.has(['catalog', key])
  const filled = { ...catalog }
  const address = env['CONSUL_HTTP_ADDR'] ?? ''
  if (address !== '' && !isGiven('address')) {
    filled.address = (address.includes('://') ? address : `http://${address}`).replace(/\/+$/, '')
    const { success } = consulAddress.safeParse(filled.address)
    if (!success)
      problems.push({
        position: undefined,
        path: [],
        message: `CONSUL_HTTP_ADDR in the environment is no agent address: ${JSON.stringify(address)}`,
      })
  }
  if (!isGiven('token') && !isGiven('tokenFile')) {
    const tokenFile = env['CONSUL_HTTP_TOKEN_FILE'] ?? ''
    const token = env['CONSUL_HTTP_TOKEN'] ?? ''
    if (tokenFile !== '') filled.tokenFile = resolve(tokenFile)
    else if (token !== '') filled.token = token
  }
  const caFile = env['CONSUL_CACERT'] ?? ''
  if (caFile !== '' && !isGiven('caFile')) filled.caFile = resolve(caFile)
  return { ...config, catalog: filled }
}
