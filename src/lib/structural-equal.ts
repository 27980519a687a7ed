/**
 * Compares plain values, to find out whether an answer changed anything.
 */

/**
 * Compares plain data (scalars, arrays, objects; no maps, sets or cycles) by content. Keys in any
 * order; a key with value undefined equals an absent one. One walk, no copies.
 */
export function isStructurallyEqual(left: unknown, right: unknown): boolean {
  if (Object.is(left, right)) return true
  if (Array.isArray(left) || Array.isArray(right)) {
    if (!Array.isArray(left) || !Array.isArray(right) || left.length !== right.length) return false
    return left.every((item, index) => isStructurallyEqual(item, right[index]))
  }
  if (!isRecord(left) || !isRecord(right)) return false
  for (const key of Object.keys(left)) if (!isStructurallyEqual(left[key], right[key])) return false
  for (const key of Object.keys(right))
    if (right[key] !== undefined && !Object.hasOwn(left, key)) return false
  return true
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null
}
