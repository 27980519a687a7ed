/**
 * Changes of native tables as text: elements of sets, and a new text in place of what is there. Pure.
 */

/** One named set or map, with what makes its elements. */
export interface NftElements {
  readonly table: string
  readonly kind: 'set' | 'map'
  readonly name: string
  readonly elements: readonly string[]
}

/** What of a table is there now that a new text must take away first. */
export interface PresentTable {
  readonly chains: readonly string[]
  readonly maps: readonly string[]
  readonly sets: readonly string[]
}

/**
 * The lines before a table's text that make it replace what is there, in one transaction, while sets keep what
 * packets put into them.
 */
export function renderReplacement(
  table: string,
  text: string,
  present: PresentTable | undefined,
): string {
  if (present === undefined) return text
  const unwanted = (kind: string, names: readonly string[]): string[] =>
    names
      .filter((name) => !text.includes(`  ${kind} ${name} {\n`))
      .map((name) => `delete ${kind} inet ${table} ${name}\n`)
  return [
    `flush table inet ${table}\n`,
    ...present.maps.map((name) => `flush map inet ${table} ${name}\n`),
    ...unwanted('chain', present.chains),
    ...unwanted('map', present.maps),
    ...unwanted('set', present.sets),
    text,
  ].join('')
}

/** Most elements in one line: nft reads lines whole. */
const ELEMENTS_A_LINE = 500

/** Makes sets hold exactly these elements. */
export function renderElements(sets: readonly NftElements[]): string {
  return sets
    .map(({ table, kind, name, elements }) =>
      [`flush ${kind} inet ${table} ${name}\n`, ...changeLines('add', table, name, elements)].join(
        '',
      ),
    )
    .join('')
}

/** Lines that add or delete elements of one set. */
export function changeLines(
  verb: 'add' | 'delete',
  table: string,
  name: string,
  elements: readonly string[],
): string[] {
  const lines: string[] = []
  for (let at = 0; at < elements.length; at += ELEMENTS_A_LINE)
    lines.push(
      `${verb} element inet ${table} ${name} { ${elements.slice(at, at + ELEMENTS_A_LINE).join(', ')} }\n`,
    )
  return lines
}

/** An address and port as an element. */
export function instanceElement(ip: string, port: number): string {
  return `${ip} . ${port}`
}
