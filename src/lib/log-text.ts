/**
 * Text from anywhere as one value of a log line. Pure.
 *
 * Only printable ASCII leaves: control characters (C0, DEL, C1), line separators, characters that change the direction
 * of text and everything else are written as `\uXXXX`, so that no value can end a line, begin another field or act on
 * a terminal.
 */

const PLAIN = /^[\x20\x21\x23-\x5b\x5d-\x7e]*$/
const BARE = /^[\w.:/@+[\]-]+$/

/** A JSON string of at most `maxChars` characters between its quotes; the rest is cut, never within an escape. */
export function quoted(text: string, maxChars: number): string {
  if (text.length <= maxChars && PLAIN.test(text)) return `"${text}"`
  let out = ''
  for (const character of text.slice(0, maxChars).toWellFormed()) {
    const escaped = PLAIN.test(character) ? character : escapeOf(character)
    if (out.length + escaped.length > maxChars) break
    out += escaped
  }
  return `"${out}"`
}

/** The same as a value of logfmt: without quotes where none are needed. */
export function logfmtValue(text: string, maxChars: number): string {
  return text.length <= maxChars && BARE.test(text) ? text : quoted(text, maxChars)
}

/** One character; two units of UTF-16 stay together. */
function escapeOf(character: string): string {
  if (character === '"' || character === '\\') return `\\${character}`
  let out = ''
  for (let i = 0; i < character.length; i += 1)
    out += `\\u${character.charCodeAt(i).toString(16).padStart(4, '0')}`
  return out
}
