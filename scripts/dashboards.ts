/**
 * The Grafana dashboards of `monitoring/grafana`, made from the table of panels in `scripts/dashboards/panels.ts`:
 * `node scripts/dashboards.ts [--write]`. Without the option it checks that the files are what the table says.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { type Dashboard, dashboards, type Panel } from './dashboards/panels.ts'

const root = resolve(import.meta.dirname, '..')

/** Grafana's grid has 24 columns. */
const COLUMNS = 24

/** Grafana 9.0 reads it, and every later version. */
const SCHEMA_VERSION = 36

const datasource = { type: 'prometheus', uid: '${datasource}' }

const outdated = dashboards.filter((dashboard) => {
  const path = join(root, `monitoring/grafana/${dashboard.name}.json`)
  const text = `${JSON.stringify(grafanaModel(dashboard), null, 2)}\n`
  if (process.argv.includes('--write')) {
    writeFileSync(path, text)
    return false
  }
  return readFileSync(path, 'utf8') !== text
})
for (const { name } of outdated)
  console.error(`monitoring/grafana/${name}.json is not what the table says; run npm run docs`)
process.exitCode = outdated.length > 0 ? 1 : 0

function grafanaModel({ name, title, description, variables, rows }: Dashboard): object {
  return {
    uid: `hostmesh-${name}`,
    title,
    description,
    tags: ['hostmesh'],
    schemaVersion: SCHEMA_VERSION,
    editable: true,
    graphTooltip: 1,
    refresh: '30s',
    time: { from: 'now-1h', to: 'now' },
    links: [
      {
        type: 'dashboards',
        title: 'hostmesh',
        tags: ['hostmesh'],
        asDropdown: true,
        includeVars: false,
        keepTime: true,
      },
    ],
    templating: {
      list: [
        { name: 'datasource', label: 'Data source', type: 'datasource', query: 'prometheus' },
        ...variables.map(({ name: variable, label, query, isMulti }) => ({
          name: variable,
          label,
          type: 'query',
          datasource,
          query: { query, refId: variable },
          refresh: 2,
          sort: 1,
          multi: isMulti,
          includeAll: isMulti,
          ...(isMulti && { allValue: '.*', current: { text: 'All', value: '$__all' } }),
        })),
      ],
    },
    panels: placed(rows),
  }
}

/** Rows one below the other, the panels of each side by side. */
function placed(rows: Dashboard['rows']): readonly object[] {
  let y = 0
  let id = 0
  return rows.flatMap(({ title, panels }) => {
    const header = { id: (id += 1), type: 'row', title, gridPos: { x: 0, y, w: COLUMNS, h: 1 } }
    y += 1
    const height = Math.max(...panels.map(heightOf))
    const left = (at: number): number => Math.round((at * COLUMNS) / panels.length)
    const models = panels.map((panel, at) => ({
      id: (id += 1),
      ...panelModel(panel),
      gridPos: { x: left(at), y, w: left(at + 1) - left(at), h: height },
    }))
    y += height
    return [header, ...models]
  })
}

function heightOf({ kind }: Panel): number {
  return kind === 'stat' ? 4 : 8
}

function panelModel({ kind, title, description, unit, queries }: Panel): object {
  return {
    type: kind,
    title,
    description,
    datasource,
    fieldConfig: { defaults: { unit, min: 0 }, overrides: [] },
    options: optionsOf(kind),
    targets: queries.map(({ expression, legend }, at) => ({
      refId: String.fromCodePoint(65 + at),
      datasource,
      expr: expression,
      legendFormat: legend,
      ...(kind === 'timeseries' ? {} : { instant: true }),
      ...(kind === 'table' && { format: 'table' }),
    })),
    ...(kind === 'table' && {
      transformations: [
        { id: 'organize', options: { excludeByName: { Time: true, __name__: true, job: true } } },
      ],
    }),
  }
}

function optionsOf(kind: Panel['kind']): object {
  switch (kind) {
    case 'timeseries':
      return {
        legend: { displayMode: 'list', placement: 'bottom', showLegend: true },
        tooltip: { mode: 'multi', sort: 'desc' },
      }
    case 'stat':
      return { reduceOptions: { calcs: ['lastNotNull'], fields: '', values: false } }
    case 'table':
      return { showHeader: true }
  }
}
