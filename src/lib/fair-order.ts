/**
 * Orders names so that no prefix excludes others when only a part is processed: among names with the same beginning,
 * those that continue differently alternate.
 *
 * A user who can create names can create thousands, but all begin with their prefix (`evil*`); in alphabetical or hash
 * order they would exclude the others.
 */

/** The unique names, sorted within each group; groups that differ in a character alternate, at each position. */
export function fairOrder(names: Iterable<string>): readonly string[] {
  return takeTurns([...new Set(names)].toSorted(), 0)
}

/** Orders names whose first `length` characters are the same. */
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
