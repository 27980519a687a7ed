/**
 * The Prometheus text of this host: combines the metric table with the current values.
 *
 * The registry holds collectors, not values: no value is stored twice, and the data plane never calls this module. Each
 * turn of the event loop renders one slice of samples, so that a scrape of thousands of service pairs does not block
 * the main thread for long; scrapes that arrive meanwhile share the result.
 */
import { type Metric as PromMetric, Registry } from 'prom-client'
import { type Metric, metrics, type Reading, type Sample } from './metrics.ts'

/** Renders metrics. */
export interface Exposition {
  /** The content type to answer with. */
  readonly contentType: string
  /** The text of all metrics: current, or of a scrape in progress. */
  metrics(): Promise<string>
}

/** Number of samples rendered without a pause: about 3 ms. */
const SLICE_SAMPLES = 1_000

/** Builds the exposition of one daemon: of {@link metrics}, and of others after them. `read` is called once for each scrape. */
export function createExposition(read: () => Reading, others: readonly Metric[] = []): Exposition {
  const registry = new Registry()
  let slice: readonly Sample[] = []
  const all = [...metrics, ...others]
  for (const metric of all) register(registry, metric, () => slice)

  const render = async (): Promise<string> => {
    const reading = read()
    const parts: string[] = []
    for (const metric of all) {
      let isFirst = true
      for (slice of slices(await collect(metric, reading))) {
        const text = await registry.getSingleMetricAsString(metric.name)
        parts.push(isFirst ? text : withoutHead(text))
        isFirst = false
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    return `${parts.join('\n')}\n`
  }

  let inFlight: Promise<string> | undefined
  return {
    contentType: registry.contentType,
    metrics: () => {
      inFlight ??= render().finally(() => {
        inFlight = undefined
      })
      return inFlight
    },
  }
}

/** At least one slice, all but the last full. Each is made when it is asked for. */
function* slices(samples: Iterable<Sample>): Iterable<readonly Sample[]> {
  let slice: Sample[] = []
  for (const sample of samples) {
    if (slice.length === SLICE_SAMPLES) {
      yield slice
      slice = []
    }
    slice.push(sample)
  }
  yield slice
}

async function collect(metric: Metric, reading: Reading): Promise<Iterable<Sample>> {
  const values = await metric.collect(reading)
  if (values === undefined) return []
  return typeof values === 'number' ? [{ value: values, labels: {} }] : values
}

function register(registry: Registry, metric: Metric, slice: () => readonly Sample[]): void {
  const { name, help, type } = metric
  const collector = { name, help, type, get: async () => ({ name, help, type, values: slice() }) }
  // The registry only calls get() (prom-client 15.1.3, lib/registry.js); its types require one of its own classes,
  // which would keep a second copy of each value.
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- see above
  registry.registerMetric(collector as unknown as PromMetric)
}

/** The samples of a rendered metric, without its HELP and TYPE lines. */
function withoutHead(text: string): string {
  return text.split('\n').slice(2).join('\n')
}
