/**
 * Text of changes to native tables: elements of sets, and the replacement of a table's text. Pure.
 */

/** One named set or map with its elements. */
export interface NftElements {
  readonly table: string
  readonly kind: 'set' | 'map'
  readonly name: string
  readonly elements: readonly string[]
}

/** The present content of a table, which a new text must remove first. */
export interface PresentTable {
  readonly chains: readonly string[]
  readonly maps: readonly string[]
  readonly sets: readonly string[]
}

/**
 * Lines that precede a table's text and make it replace the present content in one transaction. Sets keep the elements
 * that packets added.
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

/** Maximum number of elements in one line: nft reads whole lines. */
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
