/**
 * The parameters of the API's paths: each has one meaning everywhere. Parsing is strict: what is not known, given twice
 * or malformed is refused, with all problems at once.
 */
import { z } from 'zod'
import { closestWord } from '../lib/closest-word.ts'
import { DURATION_PATTERN, parseDuration } from '../lib/duration.ts'
import { MeshError } from '../lib/errors.ts'

const MIN_WINDOW_MS = 10_000
const MAX_WINDOW_MS = 86_400_000

const time = z.codec(z.iso.datetime({ offset: true }), z.number(), {
  decode: (text) => Date.parse(text),
  encode: (ms) => new Date(ms).toISOString(),
})

const name = z.string().min(1).max(128)

/** Every parameter, with the schema of its text. */
export const parameters = {
  at: time.describe('The end of the span, RFC 3339; now unless given'),
  window: z
    .string()
    .regex(new RegExp(DURATION_PATTERN), 'Must be a duration such as 30s, 5m or 1d')
    .transform((text, context) => {
      const ms = parseDuration(text)
      if (ms !== undefined && ms >= MIN_WINDOW_MS && ms <= MAX_WINDOW_MS) return ms
      context.issues.push({ code: 'custom', message: 'Must be 10s to 1d', input: text })
      return z.NEVER
    })
    .describe('Length of the span, 10s to 1d; figures have steps of 10 s'),
  group: z
    .enum(['service', 'host', 'datacenter', 'zone'])
    .describe('What the nodes of the graph stand for'),
  name: name.describe('Name of the service or host'),
  source: name.describe('Calling service'),
  destination: name.describe('Called service'),
  host: name.describe('Host that counted'),
  from: time.describe('Begin of the span, RFC 3339; an hour before its end unless given'),
  to: time.describe('End of the span, RFC 3339; now unless given'),
  step: z
    .enum(['10s', '1m', '1h'])
    .transform((text) => parseDuration(text) ?? 0)
    .describe('Length of a step; chosen by the span unless given'),
} as const

/** Name of a parameter. */
export type ParameterName = keyof typeof parameters

/** The parsed query of a path that takes these parameters. */
export type Query<Names extends ParameterName> = {
  readonly [Name in Names]?: z.output<(typeof parameters)[Name]> | undefined
}

/**
 * Parses the part of a URL after the question mark.
 * @throws MeshError HM_API_QUERY_INVALID
 */
export function parseQuery<Names extends ParameterName>(
  text: string,
  known: readonly Names[],
): Query<Names> {
  const problems: string[] = []
  const query = new Map<string, unknown>()
  const given = new URLSearchParams(text)
  for (const key of new Set(given.keys())) {
    const parameter = known.find((one) => one === key)
    const [value = '', ...others] = given.getAll(key)
    if (parameter === undefined) problems.push(unknownParameter(key, known))
    else if (others.length > 0) problems.push(`${key}: Must be given once`)
    else {
      const { success, data, error } = parameters[parameter].safeParse(value)
      if (success) query.set(parameter, data)
      else problems.push(`${key}: ${error.issues.map(({ message }) => message).join(', ')}`)
    }
  }
  if (problems.length > 0)
    throw new MeshError('HM_API_QUERY_INVALID', `Cannot answer: ${problems.join('; ')}`, {
      hint: 'The parameters of each path are in /api/v1/openapi.json',
    })
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- each value was parsed by the schema of its key
  return Object.fromEntries(query) as Query<Names>
}

function unknownParameter(key: string, known: readonly string[]): string {
  const shown = JSON.stringify(key.slice(0, 40))
  if (known.length === 0) return `${shown}: This path takes no parameters`
  const meant = closestWord(key, known)
  return `${shown}: No such parameter; ${meant === undefined ? `known here: ${known.join(', ')}` : `did you mean ${meant}?`}`
}
