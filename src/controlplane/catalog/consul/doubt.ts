/**
 * Decides when an answer of Consul has lost too much to be accepted at once: an emptied catalog, a restored server and
 * a token without rights all look like a list that is suddenly short. Pure.
 */

/** How long a doubted answer is held back, milliseconds. */
export const DOUBT_MS = 3_000

/** Whether more vanished at once than a deployment removes: all entries, or at least three and more than half. */
export function isSuddenLoss(before: readonly string[], after: readonly string[]): boolean {
  const still = new Set(after)
  const gone = before.filter((key) => !still.has(key)).length
  return gone > 0 && (after.length === 0 || (gone >= 3 && gone > before.length / 2))
}
