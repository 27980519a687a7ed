/**
 * The same work for many items, a few at a time.
 */

/**
 * Calls `act` for each of `items` in their order, at most `limit` at once; begins no more when `signal` aborts. A call
 * that throws takes its share of the limit with it; the first such error is thrown on when all calls have ended.
 */
export async function eachAtOnce<Item>(
  items: readonly Item[],
  limit: number,
  signal: AbortSignal,
  act: (item: Item) => Promise<void>,
): Promise<void> {
  const open = items.values()
  const work = async (): Promise<void> => {
    for (const item of open) {
      if (signal.aborted) return
      await act(item)
    }
  }
  const results = await Promise.allSettled(Array.from({ length: limit }, work))
  const failed = results.find((result) => result.status === 'rejected')
  if (failed !== undefined) throw failed.reason
}
