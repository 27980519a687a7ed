/**
 * Names of services and hosts that a user typed: one that is not known is an error that suggests what was meant.
 */
import { closestWord } from '../lib/closest-word.ts'
import { MeshError } from '../lib/errors.ts'

/** What can be looked for by name. */
export type NamedThing = 'service' | 'host'

/**
 * The error for a name that is not among `known`. `message` says what cannot be done, `hint` what to do if no known name
 * is similar.
 */
export function unknownName(
  thing: NamedThing,
  name: string,
  { known, message, hint }: { known: Iterable<string>; message: string; hint: string },
): MeshError {
  const meant = closestWord(name, [...known])
  const code = thing === 'service' ? 'HM_SERVICE_NOT_FOUND' : 'HM_HOST_NOT_FOUND'
  return new MeshError(code, message, {
    hint: meant === undefined ? hint : `Did you mean ${meant}? ${hint}`,
  })
}
