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
  const { catalog, metrics } = config
  const shown: Config = {
    ...config,
    catalog:
      catalog.kind === 'consul' && catalog.token !== undefined
        ? { ...catalog, token: REDACTED }
        : catalog,
    metrics: { ...metrics, ...(metrics.otlp && { otlp: withoutHeaders(metrics.otlp) }) },
  }
  return z.encode(configSchema, shown)
}

type Otlp = NonNullable<Config['metrics']['otlp']>

function withoutHeaders(otlp: Otlp): Otlp {
  const names = Object.keys(otlp.headers)
  return { ...otlp, headers: Object.fromEntries(names.map((name) => [name, REDACTED])) }
}
