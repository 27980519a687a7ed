/**
 * Records whose keys are a list of names.
 */

/** A value for every key, in the order of the keys. */
export function recordOf<Key extends string>(
  keys: readonly Key[],
  valueOf: (key: Key, index: number) => number,
): Record<Key, number> {
  const record = Object.fromEntries(keys.map((key, index) => [key, valueOf(key, index)]))
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- fromEntries forgets the key type
  return record as Record<Key, number>
}
