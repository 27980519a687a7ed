/**
 * The environment variables of Consul's own command that say where the agent is and how to connect to it. They fill in
 * what the file leaves out.
 *
 * A variable that requests an unsupported feature is an error and not ignored: with CONSUL_HTTP_SSL_VERIFY=false any
 * server could pose as the agent and receive the token.
 */
import { resolve } from 'node:path'
import type { Config } from './schema.ts'
import { consulAddress } from './source-sections.ts'

/** Environment variables by name, as in `process.env`. */
export type Environment = Readonly<Record<string, string | undefined>>

/** Variables that correspond to a key of the `catalog` section. */
const SAME_AS_KEY = [
  ['CONSUL_CACERT', 'caFile'],
  ['CONSUL_CLIENT_CERT', 'certFile'],
  ['CONSUL_CLIENT_KEY', 'keyFile'],
  ['CONSUL_TLS_SERVER_NAME', 'tlsServerName'],
] as const

/** Variables that hostmesh would have to ignore, and what to do instead. */
const NOT_SUPPORTED = [
  [
    'CONSUL_CAPATH',
    'a folder of roots is not read: write them into one file, and give that as CONSUL_CACERT',
  ],
  [
    'CONSUL_HTTP_AUTH',
    'HTTP basic authentication is not spoken: give the agent an address without it',
  ],
] as const

/**
 * Fills in the settings of the Consul agent that the file leaves out.
 * @param isGiven whether the file has this key of the `catalog` section
 */
export function withConsulEnvironment(
  config: Config,
  isGiven: (key: string) => boolean,
  env: Environment,
): { readonly config: Config; readonly problems: readonly string[] } {
  const { catalog } = config
  if (catalog.kind !== 'consul') return { config, problems: [] }
  const problems: string[] = []
  const valueOf = (name: string): string => env[name] ?? ''
  const filled = { ...catalog }

  const address = valueOf('CONSUL_HTTP_ADDR')
  for (const name of ['CONSUL_HTTP_SSL', 'CONSUL_HTTP_SSL_VERIFY'])
    if (valueOf(name) !== '' && truth(valueOf(name)) === undefined)
      problems.push(`${name} in the environment must be true or false`)
  const isSsl = truth(valueOf('CONSUL_HTTP_SSL')) === true
  if (!isGiven('address')) {
    if (address !== '')
      filled.address = (
        address.includes('://') ? address : `${isSsl ? 'https' : 'http'}://${address}`
      ).replace(/\/+$/, '')
    if (isSsl) filled.address = filled.address.replace(/^http:/, 'https:')
    if (!consulAddress.safeParse(filled.address).success)
      problems.push(
        `CONSUL_HTTP_ADDR in the environment is no agent address: ${JSON.stringify(address)}`,
      )
  }

  if (!isGiven('token') && !isGiven('tokenFile')) {
    const [tokenFile, token] = [valueOf('CONSUL_HTTP_TOKEN_FILE'), valueOf('CONSUL_HTTP_TOKEN')]
    if (tokenFile !== '') filled.tokenFile = resolve(tokenFile)
    else if (token !== '') filled.token = token
  }

  const isHttps = filled.address.startsWith('https:')
  for (const [name, key] of SAME_AS_KEY) {
    // An environment for several tools may name files that do not apply to this address.
    if (valueOf(name) === '' || isGiven(key) || !(isHttps || key === 'caFile')) continue
    filled[key] = key === 'tlsServerName' ? valueOf(name) : resolve(valueOf(name))
  }
  if (isHttps && truth(valueOf('CONSUL_HTTP_SSL_VERIFY')) === false)
    problems.push(
      'CONSUL_HTTP_SSL_VERIFY in the environment turns off the check of the agent, which would hand the token to anybody: unset it, and give its roots as caFile or CONSUL_CACERT',
    )
  for (const [name, advice] of NOT_SUPPORTED)
    if (valueOf(name) !== '') problems.push(`${name} is set in the environment, but ${advice}`)
  return { config: { ...config, catalog: filled }, problems }
}

/** A boolean as Go parses it; undefined for any other text. */
function truth(text: string): boolean | undefined {
  if (['1', 't', 'T', 'TRUE', 'true', 'True'].includes(text)) return true
  if (['0', 'f', 'F', 'FALSE', 'false', 'False'].includes(text)) return false
  return undefined
}
