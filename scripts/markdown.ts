/**
 * The little of Markdown that check-docs.ts needs: links, headings as anchors, and text without code.
 *
 * Positions are kept: code is blanked, not cut, so that an index is one into the original text.
 */

/** A link or picture of a document. */
export interface Link {
  readonly target: string
  readonly index: number
}

/** `text` with fenced blocks blanked; with the spans of inline code too when `spans` is set. */
export function withoutCode(text: string, spans = false): string {
  const blank = (part: string): string => part.replace(/[^\n]/g, ' ')
  const unfenced = text.replace(/^( *)(```+|~~~+)[^\n]*\n[\s\S]*?^ *\2[^\n]*$/gm, blank)
  return spans ? unfenced.replace(/(?<!`)(`+)(?!`)[^\n]*?(?<!`)\1(?!`)/g, blank) : unfenced
}

/** Targets of inline links, pictures, reference definitions and HTML `href`/`src`, outside of code. */
export function linksIn(text: string): readonly Link[] {
  const bare = withoutCode(text, true)
  const patterns = [
    /\]\(\s*<?([^\s<>()]+(?:\([^\s()]*\)[^\s<>()]*)*)>?(?:\s+["'][^)]*)?\s*\)/g,
    /^ {0,3}\[[^\]\n]+\]:\s*<?([^\s<>]+)>?/gm,
    /\b(?:href|src)="([^"]+)"/g,
  ]
  return patterns
    .flatMap((pattern) => [...bare.matchAll(pattern)])
    .map((match) => ({ target: match[1] ?? '', index: match.index }))
    .toSorted((a, b) => a.index - b.index)
}

/** The anchors of a document: its headings the way GitHub spells them, and explicit `id="…"`. */
export function anchorsIn(text: string): ReadonlySet<string> {
  const bare = withoutCode(text)
  const anchors = new Set<string>()
  const repeats = new Map<string, number>()
  for (const match of bare.matchAll(/^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$/gm)) {
    const slug = slugOf(match[1] ?? '')
    const count = repeats.get(slug) ?? 0
    repeats.set(slug, count + 1)
    anchors.add(count === 0 ? slug : `${slug}-${count}`)
  }
  for (const match of bare.matchAll(/\b(?:id|name)="([^"]+)"/g)) anchors.add(match[1] ?? '')
  return anchors
}

function slugOf(heading: string): string {
  return heading
    .replace(/!?\[([^\]]*)\]\([^)]*\)/g, '$1')
    .replace(/<[^>]+>/g, '')
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\p{M}_ -]/gu, '')
    .replaceAll(' ', '-')
}
