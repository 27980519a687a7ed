/**
 * A configuration turned back into what a file would say; what `hostmesh config show` prints.
 */
import { z } from 'zod'
import { type Config, configSchema } from './schema.ts'

const REDACTED = '(redacted)'

/**
 * Plain data with every default written out, durations as text and secrets replaced. Apart from the
 * secrets, reading it back gives the same configuration.
 */
export function describeConfig(config: Config): unknown {
  const { catalog } = config
  const shown: Config =
    catalog.kind === 'consul' && catalog.token !== undefined
      ? { ...config, catalog: { ...catalog, token: REDACTED } }
      : config
  return z.encode(configSchema, shown)
}
