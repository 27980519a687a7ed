/**
 * The order in which names are looked at where not all can be: of those that begin alike, each kind comes in turn.
 *
 * Whoever may make names may make thousands, but all begin with what is his (`evil*`); in the order of the alphabet, or of a hash, they
 * would push the others out.
 */

/** The same names, sorted within their kinds. */
export function fairOrder(names: Iterable<string>): readonly string[] {
  return takeTurns([...new Set(names)].toSorted(), 0)
}

/** Names whose first `length` characters are the same. */
function takeTurns(names: readonly string[], length: number): readonly string[] {
  if (names.length < 2) return names
  const kinds = new Map<string, string[]>()
  for (const name of names) {
    const kind = name.charAt(length)
    const known = kinds.get(kind)
    if (known === undefined) kinds.set(kind, [name])
    else known.push(name)
  }
  const turns = [...kinds.values()].map((kind) => takeTurns(kind, length + 1))
  const [only] = turns
  if (only !== undefined && turns.length === 1) return only
  const most = Math.max(...turns.map((kind) => kind.length))
  return Array.from({ length: most }, (_, round) =>
    turns.flatMap((kind) => kind[round] ?? []),
  ).flat()
}
