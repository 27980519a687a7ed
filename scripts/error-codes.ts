/**
 * Finds every error code of the program in its sources, with the sentence and hint that go with it.
 *
 * A code is a string literal 'HM_…'. Where it is the first argument of a call (`new MeshError(…)`,
 * `protocolError(…)`), the second is its message and a `hint:` among the rest says what to do. This
 * reads text, not types: a message built elsewhere is simply not found, and the code is listed bare.
 */

/** One error code and all that the sources say about it. */
export interface ErrorCode {
  readonly code: string
  /** Distinct messages, with `…` for what is filled in. */
  readonly messages: readonly string[]
  /** Distinct hints: what the reader can do. */
  readonly hints: readonly string[]
  /** Paths of the files that raise or name it. */
  readonly files: readonly string[]
}

/** A source file: path from the root of the repository, and text. */
export interface Source {
  readonly path: string
  readonly text: string
}

/** All error codes in `sources`, sorted by code. */
export function findErrorCodes(sources: readonly Source[]): readonly ErrorCode[] {
  const found = new Map<string, { messages: Set<string>; hints: Set<string>; files: Set<string> }>()
  for (const { path, text } of sources) {
    for (const match of text.matchAll(/(\(\s*)?'(HM_[A-Z0-9]+(?:_[A-Z0-9]+)*)'/g)) {
      const [whole, call, code = ''] = match
      const entry = found.get(code) ?? { messages: new Set(), hints: new Set(), files: new Set() }
      found.set(code, entry)
      entry.files.add(path)
      if (call === undefined) continue
      const [message, ...rest] = argumentsAfter(text, match.index + whole.length)
      const sentence = message === undefined ? undefined : literalText(message)
      if (sentence !== undefined) entry.messages.add(sentence)
      for (const argument of rest) {
        const hint = hintIn(argument)
        if (hint !== undefined) entry.hints.add(hint)
      }
    }
  }
  return [...found]
    .map(([code, { messages, hints, files }]) => ({
      code,
      messages: [...messages].toSorted(),
      hints: [...hints].toSorted(),
      files: [...files].toSorted(),
    }))
    .toSorted((a, b) => (a.code < b.code ? -1 : 1))
}

/** The table of error codes as Markdown. */
export function renderErrorTable(codes: readonly ErrorCode[]): string {
  const rows = codes.map(({ code, messages, hints, files }) =>
    [
      `\`${code}\``,
      messages.map(escapeCell).join('<br>') || '–',
      hints.map(escapeCell).join('<br>') || '–',
      files.map((file) => `\`${file}\``).join('<br>'),
    ].join(' | '),
  )
  return [
    '| code | says | what to do | in |',
    '| --- | --- | --- | --- |',
    ...rows.map((row) => `| ${row} |`),
  ].join('\n')
}

/** The table of the problems of a host as Markdown, sorted by code. */
export function renderProblemTable(
  codes: Readonly<
    Record<string, { readonly cause: string; readonly hint: string; readonly blocks?: boolean }>
  >,
): string {
  const rows = Object.entries(codes)
    .toSorted(([a], [b]) => (a < b ? -1 : 1))
    .map(([code, { cause, hint, blocks }]) =>
      [`\`${code}\``, escapeCell(cause), escapeCell(hint), blocks === true ? 'no' : 'yes'].join(
        ' | ',
      ),
    )
  return [
    '| code | cause | next step | ready with it |',
    '| --- | --- | --- | --- |',
    ...rows.map((row) => `| ${row} |`),
  ].join('\n')
}

function escapeCell(text: string): string {
  return text.replace(/[\\|*_[\]<]/g, '\\$&').replace(/\s+/g, ' ')
}

/** The further arguments of a call whose first one ends at `start`, as source text. */
function argumentsAfter(text: string, start: number): readonly string[] {
  const found: string[] = []
  let from = start
  for (let at = start; at < text.length; ) {
    const char = text[at]
    if (char === ',' || char === ')') {
      if (from > start) found.push(text.slice(from, at).trim())
      if (char === ')') break
      from = at + 1
    }
    at = afterUnit(text, at)
  }
  return found.filter((argument) => argument !== '')
}

const closing: Readonly<Record<string, string>> = { '(': ')', '[': ']', '{': '}' }

/** The position after the string, bracketed group, comment or single character at `at`. */
function afterUnit(text: string, at: number): number {
  const char = text[at] ?? ''
  if (char === "'" || char === '"' || char === '`') return afterQuoted(text, at, char)
  if (text.startsWith('//', at)) return endOr(text, text.indexOf('\n', at))
  if (text.startsWith('/*', at)) return endOr(text, text.indexOf('*/', at) + 1)
  const close = closing[char]
  if (close === undefined) return at + 1
  let inner = at + 1
  while (inner < text.length && text[inner] !== close) inner = afterUnit(text, inner)
  return inner + 1
}

function afterQuoted(text: string, at: number, quote: string): number {
  let inner = at + 1
  while (inner < text.length && text[inner] !== quote) {
    if (text[inner] === '\\') inner += 2
    else if (quote === '`' && text.startsWith('${', inner)) inner = afterUnit(text, inner + 1)
    else inner += 1
  }
  return inner + 1
}

function endOr(text: string, found: number): number {
  return found <= 0 ? text.length : found + 1
}

/** The text of a string or template literal, or of several joined by `+`; undefined for anything else. */
function literalText(expression: string): string | undefined {
  let text = ''
  for (let at = 0; at < expression.length; ) {
    const char = expression[at] ?? ''
    if (char === "'" || char === '"' || char === '`') {
      const end = afterQuoted(expression, at, char)
      text += unquote(expression.slice(at + 1, end - 1), char)
      at = end
    } else if (/[\s+]/.test(char)) {
      at += 1
    } else {
      // A part that is computed: `'…' + name`. A message that is nothing but computed has no text.
      const end = nextPlus(expression, at)
      text += '…'
      at = end
    }
  }
  return /[a-z]/i.test(text) ? text : undefined
}

function nextPlus(expression: string, start: number): number {
  let at = start
  while (at < expression.length && expression[at] !== '+') at = afterUnit(expression, at)
  return at
}

function unquote(body: string, quote: string): string {
  let text = ''
  for (let at = 0; at < body.length; ) {
    if (body[at] === '\\') {
      text += body[at + 1] === 'n' ? ' ' : (body[at + 1] ?? '')
      at += 2
    } else if (quote === '`' && body.startsWith('${', at)) {
      text += '…'
      at = afterUnit(body, at + 1)
    } else {
      text += body[at]
      at += 1
    }
  }
  return text
}

function hintIn(argument: string): string | undefined {
  const match = /(?:^|[{,\s])hint:\s*/.exec(argument)
  if (match === null) return undefined
  const start = match.index + match[0].length
  let end = start
  while (end < argument.length && argument[end] !== ',' && argument[end] !== '}')
    end = afterUnit(argument, end)
  return literalText(argument.slice(start, end).trim())
}
