/**
 * Runs the same work for many items with limited concurrency.
 */

/**
 * Calls `act` for each of `items` in order, at most `limit` at once; starts no more when `signal` aborts. A call that
 * throws reduces the limit by one; one such error is thrown again when all calls have ended.
 */
export async function forEachConcurrent<Item>(
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
