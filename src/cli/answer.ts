/**
 * What a reading command has to show, and the formats in which it is printed.
 */
import type { ExitCode } from './failure.ts'
import type { TableStyle } from './render/table.ts'

/** How a document is printed: `table` and `wide` are for people, `json` and `yaml` the unchanged document. */
export type OutputFormat = 'table' | 'wide' | 'json' | 'yaml'

/** What a command has to show. */
export interface Answer {
  /** Printed by `json` and `yaml`. */
  readonly document: unknown
  /** For people, without a newline at the end; empty when there is nothing to list, which a note then says. */
  readonly text: (style: TableStyle) => string
  /** For standard error, beside the text for people. */
  readonly notes?: readonly string[]
  /** 0 unless given. */
  readonly exitCode?: ExitCode
}

/** The text of an answer, without a newline at the end. `width` is that of the terminal, if there is one. */
export async function formatAnswer(
  answer: Answer,
  format: OutputFormat,
  width: number | undefined,
): Promise<string> {
  switch (format) {
    case 'json':
      return escapeControls(JSON.stringify(answer.document, null, 2))
    case 'yaml': {
      // Loaded when it is wanted: most commands never need it.
      const { yamlText } = await import('./render/yaml-text.ts')
      const text = yamlText(answer.document)
      if (escapeControls(text) === text) return text
      // Only text in double quotes has escapes.
      return escapeControls(yamlText(answer.document, 'QUOTE_DOUBLE'))
    }
    case 'wide':
      return answer.text({ width: undefined, isWide: true })
    case 'table':
      return answer.text({ width, isWide: false })
  }
}

/** The notes that belong to a format: documents say the same themselves. */
export function notesOf({ notes = [] }: Answer, format: OutputFormat): readonly string[] {
  return format === 'table' || format === 'wide' ? notes : []
}

/** JSON, or YAML in double quotes, without characters by which text of other hosts could steer a terminal. Same meaning. */
function escapeControls(text: string): string {
  return text.replaceAll(/[\u007F-\u009F\p{Cf}]/gu, (character) =>
    Array.from({ length: character.length }, (_, at) => {
      const unit = character.charCodeAt(at).toString(16).padStart(4, '0')
      return `\\u${unit}`
    }).join(''),
  )
}
