/**
 * The real executable against a server with the documents of a small fleet: what is printed where, and exit codes.
 */
import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { parse } from 'yaml'
import type { FleetDocuments } from '../../src/model/fleet.ts'
import { hostmesh, scriptedView, startScripted } from './admin-fixtures.ts'
import { fleet, startAggregator } from './fleet-fixtures.ts'

const executable = fileURLToPath(new URL('../../scripts/hostmesh', import.meta.url))
const run = promisify(execFile)

const NOTE = 'host-c has not reported for 2m\n'

function lines(text: string): string[] {
  return text.trimEnd().split('\n')
}

/** The cells of a table's line: columns are two spaces or more apart. */
function cells(line: string | undefined): string[] {
  return (line ?? '').trim().split(/ {2,}/)
}

test('edges --fleet is a table of pairs by name, and what is missing is said on standard error', async () => {
  await using server = await startAggregator()
  const { code, stdout, stderr } = await hostmesh([
    'edges',
    '--fleet',
    '--aggregator',
    server.socketPath,
  ])
  assert.deepEqual([code, stderr], [0, NOTE])
  const quantiles = '0.4ms / 2.1ms'
  assert.deepEqual(lines(stdout).map(cells), [
    [
      'SOURCE',
      'DESTINATION',
      'CONN/S',
      'ERRORS',
      'CONNECT P50/P99',
      'FIRST BYTE P50/P99',
      'ACTIVE',
      'POLICY',
    ],
    ['batch', 'db', '0.5', '-', quantiles, '-', '0', 'deny'],
    ['web', 'cache', '3.0', '10%', quantiles, '-', '7', 'allow'],
    ['web', 'db', '12', '0%', quantiles, '-', '7', 'allow'],
  ])
  const wide = await hostmesh(['edges', '--fleet', '-o', 'wide'], {
    HOSTMESH_AGGREGATOR: `unix://${server.socketPath}`,
  })
  assert.match(wide.stdout, /DENY:30 .*no intention matches, the default policy says deny/)
})

test('filters take what fits, and a name that is not there exits 5 with the one that was meant', async () => {
  await using server = await startAggregator()
  const at = ['--aggregator', server.socketPath]
  const some = await hostmesh(['edges', '--fleet', '--source', 'web', '-o', 'json', ...at])
  const document: FleetDocuments['graph'] = JSON.parse(some.stdout)
  assert.deepEqual(
    document.edges.map(({ destination }) => destination),
    ['cache', 'db'],
  )
  assert.deepEqual(document.coverage, fleet.graph.coverage)
  const misspelled: [string[], RegExp][] = [
    [['edges', '--fleet', '--source', 'wbe'], /Did you mean web\? /],
    [['services', '--fleet', 'dbb'], /Did you mean db\? /],
    [['services', '--fleet', '--host', 'host-d'], /Did you mean host-a\? /],
    [['fleet', 'hosts', 'hots-b'], /Did you mean host-b\? /],
    [['simulate', '--intentions', '/dev/null', '--source', 'x'], /^hostmesh: Cannot /],
  ]
  for (const [words, hint] of misspelled) {
    const outcome = await hostmesh([...words, ...at])
    assert.equal(outcome.stdout, '', words.join(' '))
    assert.match(outcome.stderr, hint)
    if (words[0] !== 'simulate') assert.equal(outcome.code, 5, words.join(' '))
  }
  const host = await hostmesh(['edges', '--fleet', '--host', 'host b', '--window', '1h', ...at])
  assert.equal(lines(host.stdout).length, 2)
  assert.equal(server.asked.at(-1)?.url, '/api/v1/host?name=host+b&window=1h')
})

test('json and yaml are the document of the aggregator, with notes nowhere', async () => {
  await using server = await startAggregator()
  const commands: [string[], unknown][] = [
    [['fleet', 'status'], fleet.overview],
    [['fleet', 'hosts'], fleet.hosts],
    [['fleet', 'hosts', 'host-b'], fleet.host],
    [['fleet', 'versions'], fleet.versions],
    [['services', '--fleet'], fleet.services],
    [['services', '--fleet', 'db'], fleet.service],
  ]
  for (const [words, document] of commands) {
    const at = ['--aggregator', server.socketPath]
    const json = await hostmesh([...words, '-o', 'json', ...at])
    assert.deepEqual([JSON.parse(json.stdout), json.stderr], [document, ''], words.join(' '))
    const yaml = await hostmesh([...words, '-o', 'yaml', ...at])
    assert.deepEqual([parse(yaml.stdout), yaml.stderr], [document, ''], words.join(' '))
  }
})

test('fleet status says how many hosts are in which state, and exits 1 while one is not well', async () => {
  await using server = await startAggregator()
  const bad = await hostmesh(['fleet', 'status', '--aggregator', server.socketPath])
  assert.equal(bad.code, 1)
  assert.match(bad.stdout, /^Hosts +1 ready, 1 degraded, 1 silent$/m)
  assert.match(bad.stdout, /^HM_CAPTURE_RULES_LOST +1$/m)
  const hosts = { ...fleet.overview.hosts, total: 1, degraded: 0, silent: 0 }
  await using calm = await startAggregator({
    documents: { overview: { ...fleet.overview, hosts } },
  })
  assert.equal((await hostmesh(['fleet', 'status', '--aggregator', calm.url])).code, 0)
})

test('fleet hosts, versions and risks are tables; a high risk exits 1', async () => {
  await using server = await startAggregator()
  const at = ['--aggregator', server.socketPath]
  const silent = await hostmesh(['fleet', 'hosts', '--state', 'silent', ...at])
  assert.match(silent.stdout, /\nhost-c +silent +1\.1\.0 +\d+s ago, 2m late /)
  assert.equal(lines(silent.stdout).length, 2)
  const one = await hostmesh(['fleet', 'hosts', 'host-b', ...at])
  assert.match(one.stdout, /^Capture +on by nftables, rules not in place$/m)
  assert.match(one.stdout, /^db +25% +1\.0MiB +9 +- +10% +0% +-$/m)
  const versions = await hostmesh(['fleet', 'versions', ...at])
  assert.match(versions.stdout, /^1\.2\.3 +2 +host-a, host-b$/m)
  assert.match(versions.stdout, /^web +batch +1\.1\.0, 1\.2\.3$/m)
  const risks = await hostmesh(['fleet', 'risks', '--severity', 'medium', '-o', 'wide', ...at])
  assert.equal(risks.code, 1)
  assert.deepEqual(lines(risks.stdout).map(cells), [
    ['SEVERITY', 'KIND', 'SUBJECT', 'WHAT', 'NEXT'],
    ['high', 'singleInstance', 'db', 'db has one instance', 'Run another one'],
  ])
})

test('top puts the figure on top that is asked for, and --once ends', async () => {
  await using server = await startAggregator()
  const first = async (...words: string[]): Promise<string[]> =>
    cells(
      lines(
        (await hostmesh(['top', '--fleet', '--once', '--aggregator', server.socketPath, ...words]))
          .stdout,
      )[1],
    ).slice(0, 2)
  assert.deepEqual(await first(), ['web', 'db'])
  assert.deepEqual(await first('--sort', 'errors'), ['web', 'cache'])
})

test('no aggregator exits 3, no right 4, and each says what to do', async () => {
  const nobody = await hostmesh(['fleet', 'status', '--aggregator', '/nonexistent/api.sock'])
  assert.equal(nobody.code, 3)
  assert.match(nobody.stderr, /nothing listens there\n {2}hint: .*--aggregator/)
  await using server = await startAggregator({
    answer: (request, response) => {
      const isKnown = request.headers.authorization === 'Bearer s3cret'
      if (isKnown && !request.url?.includes('/risks')) return false
      response.writeHead(isKnown ? 403 : 401).end()
      return true
    },
  })
  const unknown = await hostmesh(['fleet', 'status', '--aggregator', server.url])
  assert.equal(unknown.code, 4)
  assert.match(unknown.stderr, /does not know you\n {2}hint: Give a token with --token-file/)
  const tokenFile = join(server.directory, 'token')
  await writeFile(tokenFile, 's3cret\n', { mode: 0o600 })
  const at = ['--aggregator', server.url, '--token-file', tokenFile]
  assert.equal((await hostmesh(['fleet', 'versions', ...at])).code, 0)
  assert.equal((await hostmesh(['fleet', 'risks', ...at])).code, 4)
})

test('a token goes neither over the network in plaintext nor to where an aggregator redirects', async () => {
  await using other = await startAggregator()
  await using server = await startAggregator({
    answer: (_request, response) => {
      response.writeHead(307, { location: other.url }).end()
      return true
    },
  })
  const tokenFile = join(server.directory, 'token')
  await writeFile(tokenFile, 's3cret', { mode: 0o600 })
  const plain = await hostmesh([
    'fleet',
    'status',
    '--aggregator',
    'http://192.0.2.1:80',
    '--token-file',
    tokenFile,
  ])
  assert.equal(plain.code, 2)
  assert.match(plain.stderr, /everybody on the way could read it/)
  const led = await hostmesh([
    'fleet',
    'status',
    '--aggregator',
    server.url,
    '--token-file',
    tokenFile,
  ])
  assert.equal(led.code, 1)
  assert.match(led.stderr, /HTTP status 307\n {2}hint: Redirects are not followed/)
  assert.equal(other.asked.length, 0)
  await writeFile(tokenFile, 'two\ntokens', { mode: 0o600 })
  const wrong = await hostmesh([
    'fleet',
    'status',
    '--aggregator',
    server.url,
    '--token-file',
    tokenFile,
  ])
  assert.equal(wrong.code, 2)
})

test('over https the certificate must hold by the given roots', async () => {
  await using place = await startAggregator()
  const [key, cert] = ['key.pem', 'cert.pem'].map((name) => join(place.directory, name))
  assert.ok(key !== undefined && cert !== undefined)
  await run('openssl', [
    'req',
    '-x509',
    '-newkey',
    'ec',
    '-pkeyopt',
    'ec_paramgen_curve:P-256',
    '-nodes',
    '-keyout',
    key,
    '-out',
    cert,
    '-days',
    '2',
    '-subj',
    '/CN=aggregator',
    '-addext',
    'subjectAltName=IP:127.0.0.1',
  ])
  const tls = { key: await readFile(key, 'utf8'), cert: await readFile(cert, 'utf8') }
  await using server = await startAggregator({ tls })
  const untrusted = await hostmesh(['fleet', 'versions', '--aggregator', server.url])
  assert.equal(untrusted.code, 1)
  assert.match(untrusted.stderr, /Cannot trust the aggregator .*\n {2}hint: .*--ca-file/)
  const at = ['--aggregator', server.url, '--ca-file', cert]
  assert.equal((await hostmesh(['fleet', 'versions', ...at])).code, 0)
})

test('an answer that is something else is an error, and its text cannot steer the terminal', async () => {
  const bodies: [number, string][] = [
    [200, '<html>'],
    [200, '{"coverage":{}}'],
    [400, JSON.stringify({ error: { code: 'HM_USAGE_X', message: 'no\u001B[2J\u202E' } })],
  ]
  for (const [status, body] of bodies) {
    await using server = await startAggregator({
      answer: (_request, response) => {
        response.writeHead(status).end(body)
        return true
      },
    })
    const { code, stdout, stderr } = await hostmesh(['fleet', 'risks', '--aggregator', server.url])
    assert.equal(code, status === 200 ? 1 : 2)
    assert.equal(stdout, '')
    // oxlint-disable-next-line no-control-regex -- control characters are what this looks for
    assert.doesNotMatch(stderr, /[\u0000-\u0009\u000B-\u001F\u202E]/)
  }
  for (const wrong of ['ftp://x', 'relative/path', 'https://user@x', 'https://x/?q', ''])
    assert.equal((await hostmesh(['fleet', 'risks', '--aggregator', wrong])).code, 2, wrong)
})

test('--watch on a pipe prints one document after the other until it is ended, over failures', async () => {
  let failures = 0
  await using server = await startAggregator({
    answer: (_request, response) => {
      if (server.asked.length !== 2) return false
      failures += 1
      response.writeHead(500).end()
      return true
    },
  })
  const words = ['fleet', 'versions', '--watch', '--interval', '200ms', '-o', 'yaml']
  const child = spawn(executable, [...words, '--aggregator', server.url])
  let stderr = ''
  child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()))
  let text = ''
  for await (const line of createInterface({ input: child.stdout })) {
    text += `${line}\n`
    if (line.startsWith('---')) child.kill('SIGINT')
  }
  const [code] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode]
  assert.equal(code, 0)
  assert.equal(failures, 1)
  assert.match(stderr, /^hostmesh: Cannot get \/api\/v1\/versions .*: HTTP status 500\n$/)
  for (const document of text.split('---\n')) assert.deepEqual(parse(document), fleet.versions)
})

/** Runs a command line on a terminal of `columns`; `script` makes the terminal. */
async function onTerminal(
  columns: number,
  line: string,
  environment: Readonly<Record<string, string>> = {},
): Promise<string> {
  const { stdout } = await run(
    'script',
    ['-qec', `stty cols ${columns} rows 24; ${executable} ${line}`, '/dev/null'],
    { env: { PATH: process.env['PATH'] ?? '', TERM: 'xterm-256color', ...environment } },
  ).catch((error: { stdout: string }) => error)
  return stdout.replaceAll('\r', '')
}

test('on a terminal lines fit its width, with color unless NO_COLOR is set', async () => {
  await using server = await startAggregator()
  const line = `edges --fleet --aggregator ${server.socketPath} 2>&1`
  const shown = await onTerminal(72, line, { NO_COLOR: '1' })
  assert.ok(lines(shown).length >= 5, shown)
  for (const each of lines(shown)) assert.ok(each.length <= 72, `${each.length}: ${each}`)
  assert.ok(!shown.includes('\u001B'))
  assert.ok((await onTerminal(72, line)).includes('\u001B[31mdeny\u001B[39m'))
})

test('--watch on a terminal draws on its other screen, and gives the first one back', async () => {
  await using server = await startAggregator()
  const end = 'sleep 3; kill -INT $!; wait $!'
  const shown = await onTerminal(
    100,
    `top --fleet --aggregator ${server.socketPath} --interval 200ms & ${end}`,
    { NO_COLOR: '1' },
  )
  const [before, rest = ''] = shown.split('\u001B[?1049h')
  const [drawn = '', after = ''] = rest.split('\u001B[?1049l')
  assert.equal(before, '')
  assert.ok(drawn.split('\u001B[H').length > 3, 'several times')
  assert.match(after, /^SOURCE .*\nweb +db /)
})

test('simulate exits 1 when seen connections would be cut, with and without an aggregator', async () => {
  await using server = await startAggregator()
  const at = ['--aggregator', server.socketPath]
  const [narrow, wide, seen] = ['narrow.json', 'wide.yaml', 'seen.json'].map((name) =>
    join(server.directory, name),
  )
  assert.ok(narrow !== undefined && wide !== undefined && seen !== undefined)
  const sources = [{ Name: 'web', Action: 'allow' }]
  await writeFile(
    narrow,
    JSON.stringify({ Kind: 'service-intentions', Name: 'db', Sources: sources }),
  )
  await writeFile(wide, 'defaultPolicy: allow\n')
  await writeFile(seen, (await hostmesh(['edges', '--fleet', '-o', 'json', ...at])).stdout)
  for (const from of [
    ['--fleet', ...at],
    ['--seen', seen],
  ]) {
    const cut = await hostmesh(['simulate', '--intentions', narrow, ...from])
    assert.equal(cut.code, 1)
    assert.deepEqual(lines(cut.stdout).slice(0, 4).map(cells), [
      ['SOURCE', 'DESTINATION', 'CONN/S', 'TODAY', 'PROPOSED', 'CHANGE', 'BECAUSE'],
      [
        'web',
        'cache',
        '3.0',
        'allow',
        'deny',
        'cut',
        'no intention matches, the default policy says deny',
      ],
      [
        'batch',
        'db',
        '0.5',
        'deny',
        'deny',
        'same',
        'no intention matches, the default policy says deny',
      ],
      [
        'web',
        'db',
        '12',
        'allow',
        'allow',
        'same',
        'intention web -> db (precedence 9) says allow',
      ],
    ])
    assert.match(cut.stdout, /^3 pairs seen: .*; 1 would be cut, 0 opened$/m)
    assert.equal(cut.stderr, NOTE, 'what is missing in the view is missing in the answer')
    const opened = await hostmesh(['simulate', '--intentions', wide, '--changed', ...from])
    assert.equal(opened.code, 0)
    assert.equal(cells(lines(opened.stdout)[1])[5], 'opened')
  }
  await writeFile(seen, '{"edges":[]}')
  const wrong = await hostmesh(['simulate', '--intentions', narrow, '--seen', seen])
  assert.equal(wrong.code, 2)
  assert.match(wrong.stderr, /it is not a graph of the aggregator\n {2}hint: Write it with/)
})

test('without --fleet edges and top are of this host, from two readings of its metrics', async () => {
  let readings = 0
  const labels = 'reporter="source",source_service="web",destination_service="db"'
  await using server = await startScripted(
    scriptedView({
      metrics: async () => {
        readings += 1
        return `hostmesh_tcp_connections_active{${labels}} 4\nhostmesh_tcp_connections_opened_total{${labels}} ${readings * 1_000}\n`
      },
    }),
  )
  const address = ['--addr', `unix://${server.socketPath}`]
  const { code, stdout, stderr } = await hostmesh(['edges', '-o', 'json', ...address])
  assert.deepEqual([code, stderr, readings], [0, '', 2])
  const { edges, coverage }: FleetDocuments['graph'] = JSON.parse(stdout)
  assert.ok(coverage.windowMs >= 1_000)
  const rate = edges[0]?.traffic.openedPerSecond ?? 0
  assert.ok(rate > 100 && rate <= 1_000, `${rate}`)
  const top = await hostmesh(['top', '--once', ...address])
  assert.match(top.stdout, /\nweb +db +\d+ +- +- +- +4 +-$/m)
  const nobody = await hostmesh(['edges', '--addr', 'unix:///nonexistent'])
  assert.equal(nobody.code, 3)
})

test('lists of a host take the same filters, and say what was meant', async () => {
  await using server = await startScripted(scriptedView())
  const address = ['--addr', `unix://${server.socketPath}`]
  const peers = await hostmesh(['peers', '--destination', 'db', '-o', 'wide', ...address])
  assert.match(peers.stdout, /SPIFFE ID OF PEER\nweb .*spiffe:\/\/mesh\.example\.com/)
  const none = await hostmesh(['connections', '--source', 'wbe', ...address])
  assert.deepEqual([none.code, none.stdout], [0, ''])
  assert.match(none.stderr, /^No connections from wbe are open\n.*did you mean web\?\n/)
  const meant = await hostmesh(['services', 'dbb', ...address])
  assert.equal(meant.code, 5)
  assert.match(meant.stderr, /Did you mean db\? /)
})
