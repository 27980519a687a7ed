/**
 * Documents as YAML. A file of its own, because the bundle cannot import the package `yaml` itself at run time: of a
 * package of the older kind that is also imported elsewhere it would have only the default export.
 */
import { stringify } from 'yaml'

/** YAML without aliases and without a line break at the end. Text is quoted where necessary, or as `quotes` says. */
export function yamlText(document: unknown, quotes?: 'QUOTE_DOUBLE'): string {
  const style = quotes && { defaultStringType: quotes, defaultKeyType: quotes }
  return stringify(document, { aliasDuplicateObjects: false, ...style }).trimEnd()
}
