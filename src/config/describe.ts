/**
 * Converts a configuration back into the form of a file, as `hostmesh config show` prints it.
 */
import { z } from 'zod'
import { type Config, configSchema } from './schema.ts'

const REDACTED = '(redacted)'

/**
 * Plain data with all defaults, durations as text and secrets replaced. Apart from the secrets, parsing it returns the
 * same configuration.
 */
export function describeConfig(config: Config): unknown {
  const { catalog } = config
  const shown: Config =
    catalog.kind === 'consul' && catalog.token !== undefined
      ? { ...config, catalog: { ...catalog, token: REDACTED } }
      : config
  return z.encode(configSchema, shown)
}
