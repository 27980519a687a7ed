/**
 * The OpenAPI 3.1 description of the API, made from its table of paths and its schemas. Pure.
 */
import { z } from 'zod'
import { apiDocuments, LIVE_PATH, OPENAPI_PATH } from './api.ts'
import { type ParameterName, parameters } from './query.ts'
import { documentSchemas, errorSchema, liveEventSchema, schemaNames } from './schema.ts'

type JsonSchema = z.core.JSONSchema.BaseSchema

/** The description. */
export function openApiDocument(version: string): object {
  const schemas = componentSchemas()
  const documents = Array.from(
    apiDocuments,
    ([path, { summary, parameters: names, required, name }]) => [
      path,
      {
        get: {
          operationId: name,
          summary,
          parameters: names.map((one) => parameterOf(one, required?.includes(one) === true)),
          responses: { 200: jsonAnswer(summary, idOf(documentSchemas[name])), ...refusals },
        },
      },
    ],
  )
  return {
    openapi: '3.1.0',
    info: {
      title: 'hostmesh aggregator',
      version,
      description:
        'The fleet as its hosts have reported it. Fields are added in /api/v1, never renamed or removed. A number that nobody reported is null, never 0.',
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    },
    security: [{}, { token: [] }, { certificate: [] }],
    paths: {
      ...Object.fromEntries(documents),
      [LIVE_PATH]: {
        get: {
          operationId: 'live',
          summary: 'Server-sent events, one a second: the graph of the last seconds',
          parameters: [],
          responses: {
            200: {
              description: 'Each event has one document as data',
              content: {
                'text/event-stream': {
                  schema: { type: 'string' },
                  'x-event-schema': ref(idOf(liveEventSchema)),
                },
              },
            },
            ...refusals,
          },
        },
      },
      [OPENAPI_PATH]: {
        get: {
          operationId: 'openapi',
          summary: 'This description',
          parameters: [],
          responses: {
            200: {
              description: 'OpenAPI 3.1',
              content: { 'application/json': { schema: { type: 'object' } } },
            },
            ...refusals,
          },
        },
      },
      '/metrics': textPath('metrics', 'The fleet as Prometheus text', refusals),
      '/healthz': textPath('healthz', 'Whether the aggregator serves', {}),
    },
    components: {
      schemas,
      securitySchemes: {
        token: { type: 'http', scheme: 'bearer' },
        certificate: { type: 'mutualTLS' },
      },
    },
  }
}

const refusals = {
  default: {
    description: 'Why there is no answer',
    content: { 'application/json': { schema: ref(idOf(errorSchema)) } },
  },
}

function textPath(operationId: string, summary: string, others: object): object {
  return {
    get: {
      operationId,
      summary,
      parameters: [],
      responses: {
        200: { description: summary, content: { 'text/plain': { schema: { type: 'string' } } } },
        ...others,
      },
    },
  }
}

function jsonAnswer(description: string, id: string): object {
  return { description, content: { 'application/json': { schema: ref(id) } } }
}

function ref(id: string): { readonly $ref: string } {
  return { $ref: `#/components/schemas/${id}` }
}

function idOf(schema: z.ZodType): string {
  return schemaNames.get(schema)?.id ?? ''
}

function parameterOf(name: ParameterName, isRequired: boolean): object {
  const { $schema: _, description, ...schema } = z.toJSONSchema(parameters[name], { io: 'input' })
  return { name, in: 'query', required: isRequired, description, schema }
}

/** All named schemas; members may be added in later versions, so others than the listed ones are allowed. */
function componentSchemas(): Readonly<Record<string, JsonSchema>> {
  const { schemas } = z.toJSONSchema(schemaNames, {
    uri: (id) => ref(id).$ref,
    override: ({ jsonSchema }) => {
      if (jsonSchema.additionalProperties === false) delete jsonSchema.additionalProperties
    },
  })
  return Object.fromEntries(
    Object.entries(schemas).map(([id, schema]) => {
      const { $schema: _schema, $id: _id, ...rest } = schema
      return [id, rest]
    }),
  )
}
