/**
 * Node's HTTP without its WebSocket: an `import` of `node:http` reads every export, and reading WebSocket loads a whole
 * HTTP client (undici) that is not used here: a tenth of a start. Import types from `node:http`, values from here.
 */
import type * as nodeHttp from 'node:http'

/** The module `node:http`. */
export const http: typeof nodeHttp = process.getBuiltinModule('node:http')
