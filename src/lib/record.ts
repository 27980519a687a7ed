/**
 * Records whose keys are a list of names.
 */

/** A value for every key, in the order of the keys. */
export function recordOf<Key extends string, Value>(
  keys: readonly Key[],
  valueOf: (key: Key, index: number) => Value,
): Record<Key, Value> {
  const record = Object.fromEntries(keys.map((key, index) => [key, valueOf(key, index)]))
  // oxlint-disable-next-line typescript/no-unsafe-type-assertion -- fromEntries forgets the key type
  return record as Record<Key, Value>
}
