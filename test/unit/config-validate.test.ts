/** Claims about src/config/validate.ts: what no single key can get wrong. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { localServices } from '../../src/config/local-services.ts'
import { type ConfigInput, configSchema, isDnsOn } from '../../src/config/schema.ts'
import { configWarnings, validateConfig } from '../../src/config/validate.ts'

type Change = Partial<ConfigInput>

function problemsOf(change: Change): string[] {
  const config = configSchema.parse({
    catalog: { kind: 'file', path: '/c' },
    certificates: { kind: 'files', directory: '/d' },
    ...change,
  })
  return validateConfig(config).map(({ path, message }) => `${path.join('.')}: ${message}`)
}

/** Each row: what it is, the configuration, the key that is named, a part of the sentence. */
const BROKEN: readonly [claim: string, change: Change, key: string, says: RegExp][] = [
  [
    'certificates from Consul with a catalog from a file',
    { certificates: { kind: 'consul' } },
    'certificates.kind',
    /the catalog is a file/,
  ],
  [
    'metrics in plaintext to another host',
    { metrics: { otlp: { endpoint: 'http://collector.example:4318' } } },
    'metrics.otlp.endpoint',
    /would leave this host in plaintext/,
  ],
  [
    'metrics in plaintext to an address that only begins as a local one',
    { metrics: { otlp: { endpoint: 'http://127.0.0.1.example:4318' } } },
    'metrics.otlp.endpoint',
    /would leave this host in plaintext/,
  ],
  [
    'a password in the URL of an endpoint',
    { metrics: { otlp: { endpoint: 'https://user:secret@collector.example' } } },
    'metrics.otlp.endpoint',
    /as an authorization header/,
  ],
  [
    'neither a directory nor paths of certificates',
    { certificates: { kind: 'files' } },
    'certificates.kind',
    /either directory alone, or certificate, key and roots/,
  ],
  [
    'a directory and paths of certificates',
    { certificates: { kind: 'files', directory: '/d', key: '/k' } },
    'certificates.directory',
    /either directory alone/,
  ],
  [
    'a path of certificates that is the same for two services',
    {
      certificates: { kind: 'files', certificate: '/{service}.crt', key: '/k', roots: '/r' },
      services: [
        { name: 'a', port: 1 },
        { name: 'b', port: 2 },
      ],
    },
    'certificates.key',
    /Must contain \{service\}/,
  ],
  [
    'a CA at a virtual address',
    { certificates: { kind: 'builtin', server: '240.1.2.3:15444' } },
    'certificates.server',
    /not be reached through the mesh/,
  ],
  [
    'a CA at a virtual IPv6 address',
    { certificates: { kind: 'builtin', server: '[fdc6:6d65:7368::5]:15444' } },
    'certificates.server',
    /not be reached through the mesh/,
  ],
  [
    'a CA under a name of the mesh',
    { certificates: { kind: 'builtin', server: 'ca.mesh:15444' } },
    'certificates.server',
    /not be reached through the mesh/,
  ],
  [
    'a certificate for the agent without its key',
    {
      catalog: { kind: 'consul', address: 'https://a:1', certFile: '/c' },
      certificates: { kind: 'consul' },
    },
    'catalog.certFile',
    /both certFile and keyFile/,
  ],
  [
    'a certificate for an agent that is not asked by https',
    {
      catalog: { kind: 'consul', certFile: '/c', keyFile: '/k' },
      certificates: { kind: 'consul' },
    },
    'catalog.address',
    /for an https address/,
  ],
  [
    'a token and a token file',
    {
      catalog: { kind: 'consul', token: 'a', tokenFile: '/b' },
      certificates: { kind: 'consul' },
    },
    'catalog.token',
    /either token or tokenFile/,
  ],
  [
    'unknown callers that are taken for a service of another host',
    {
      services: [{ name: 'a', identity: { user: 1 } }],
      capture: { mode: 'on', unknownCallers: 'b' },
    },
    'capture.unknownCallers',
    /No service of this host is called b/,
  ],
  [
    'unknown callers that have an identity and are refused',
    {
      services: [{ name: 'a' }],
      capture: { mode: 'on', unknownCallers: 'a', unknownToInstances: 'refuse' },
    },
    'capture.unknownToInstances',
    /none is left to refuse/,
  ],
  [
    'two services with one ID',
    {
      services: [
        { name: 'a', port: 1 },
        { name: 'b', id: 'a', port: 2 },
      ],
    },
    'services.1.id',
    /already that of services\[0\]/,
  ],
  [
    'two instances of a service without IDs',
    {
      services: [
        { name: 'a', port: 1 },
        { name: 'a', port: 2 },
      ],
    },
    'services.1.name',
    /give each instance an id/,
  ],
  [
    'an instance given twice',
    {
      services: [
        { name: 'a', port: 1 },
        { name: 'a', id: 'a-2', port: 1 },
      ],
    },
    'services.1.port',
    /same instance/,
  ],
  [
    'a service that can do nothing',
    { services: [{ name: 'a' }] },
    'services.0',
    /neither port, identity nor upstreams/,
  ],
  [
    'two services with one user',
    {
      services: [
        { name: 'a', identity: { user: 'x' } },
        { name: 'b', identity: { user: 'x' } },
      ],
    },
    'services.1.identity.user',
    /could not tell the two apart/,
  ],
  [
    'two services with one user number',
    {
      services: [
        { name: 'a', identity: { user: 33 } },
        { name: 'b', identity: { user: 33 } },
      ],
    },
    'services.1.identity.user',
    /could not tell/,
  ],
  [
    'a cgroup inside another',
    {
      services: [
        { name: 'a', identity: { cgroup: 'system.slice/a.service/inner' } },
        { name: 'b', identity: { cgroup: 'system.slice/a.service' } },
      ],
    },
    'services.1.identity.cgroup',
    /contains the other/,
  ],
  [
    'two spellings of one source address',
    {
      services: [
        { name: 'a', identity: { sourceAddress: '::ffff:172.17.0.2' } },
        { name: 'b', identity: { sourceAddress: '172.17.0.2' } },
      ],
    },
    'services.1.identity.sourceAddress',
    /could not tell/,
  ],
  [
    'an upstream on the tunnel port',
    { services: [{ name: 'a', upstreams: [{ destination: 'b', bindPort: 15_443 }] }] },
    'services.0.upstreams.0.bindPort',
    /clashes with the tunnel/,
  ],
  [
    'the resolver on the port of an upstream',
    {
      dns: { mode: 'on', port: 5 },
      services: [{ name: 'a', upstreams: [{ destination: 'x', bindPort: 5 }] }],
    },
    'services.0.upstreams.0.bindPort',
    /clashes with the resolver \(dns\.port\)/,
  ],
  [
    'two upstreams on one port',
    {
      services: [
        { name: 'a', upstreams: [{ destination: 'x', bindPort: 5 }] },
        { name: 'b', upstreams: [{ destination: 'y', bindPort: 5 }] },
      ],
    },
    'services.1.upstreams.0.bindPort',
    /clashes with upstream x of a \(services\.0\.upstreams\.0\.bindPort\)/,
  ],
  [
    'an upstream on the port of an application',
    {
      services: [{ name: 'a', port: 80, upstreams: [{ destination: 'x', bindPort: 80 }] }],
    },
    'services.0.port',
    /clashes with upstream x of a/,
  ],
  [
    'an upstream on all addresses over an application on one',
    {
      services: [
        {
          name: 'a',
          port: 80,
          upstreams: [{ destination: 'x', bindPort: 80, bindAddress: '0.0.0.0' }],
        },
      ],
    },
    'services.0.port',
    /clashes/,
  ],
  [
    'metrics on the tunnel port',
    { metrics: { port: 15_443 } },
    'metrics.port',
    /clashes with the tunnel/,
  ],
  [
    'a capture port on the port of an application',
    {
      services: [
        { name: 'a', identity: { user: 'a' } },
        { name: 'b', port: 15_101, identity: { user: 'b' } },
      ],
    },
    'services.1.port',
    /clashes with the capture of b/,
  ],
  [
    'more capture ports than there are ports left',
    {
      capture: { basePort: 65_535 },
      services: [
        { name: 'a', identity: { user: 'a' } },
        { name: 'b', identity: { user: 'b' } },
      ],
    },
    'capture.basePort',
    /no port for the capture of b: it would be 65536/,
  ],
  [
    'a captured service that runs as the exempt user',
    {
      capture: { mode: 'on', daemonUser: 'x' },
      services: [{ name: 'a', identity: { user: 'x' } }],
    },
    'services.0.identity.user',
    /exempt from capture/,
  ],
  [
    'a range that is none',
    { capture: { virtualRange: '240.0.0.0/33' } },
    'capture.virtualRange',
    /Must be an IPv4 range/,
  ],
  [
    'a range of the other family',
    { capture: { virtualRange: 'fd00::/64' } },
    'capture.virtualRange',
    /Must be an IPv4 range/,
  ],
  [
    'an IPv4 range for IPv6',
    { capture: { virtualRange6: '240.0.0.0/4' } },
    'capture.virtualRange6',
    /Must be an IPv6 range/,
  ],
  [
    'a range with host bits',
    { capture: { virtualRange: '241.0.0.1/8' } },
    'capture.virtualRange',
    /did you mean 241\.0\.0\.0\/8/,
  ],
  [
    'a range that is everything',
    { capture: { virtualRange: '0.0.0.0/0' } },
    'capture.virtualRange',
    /too wide/,
  ],
  [
    'a range of four addresses',
    { capture: { virtualRange: '240.0.0.0/30' } },
    'capture.virtualRange',
    /too small/,
  ],
  [
    'a range with loopback in it',
    { capture: { virtualRange: '112.0.0.0/4' } },
    'capture.virtualRange',
    /contains addresses of 127\.0\.0\.0\/8/,
  ],
  [
    'a multicast range',
    { capture: { virtualRange: '239.1.0.0/16' } },
    'capture.virtualRange',
    /contains addresses of 224\.0\.0\.0\/4/,
  ],
  [
    "a range with this host's address in it",
    { node: { address: '10.1.2.3' }, capture: { virtualRange: '10.0.0.0/8' } },
    'capture.virtualRange',
    /contains 10\.1\.2\.3 \(node\.address\)/,
  ],
  [
    'a range with the address of an application in it',
    { services: [{ name: 'a', port: 1, address: 'fdc6:6d65:7368::9' }] },
    'capture.virtualRange6',
    /contains fdc6:6d65:7368::9 \(service a\)/,
  ],
  [
    'an admin socket path that does not fit',
    { admin: { socket: `/${'x'.repeat(107)}` } },
    'admin.socket',
    /108 bytes/,
  ],
]

for (const [claim, change, key, says] of BROKEN)
  test(`${claim} is one problem, at ${key}`, () => {
    const problems = problemsOf(change)
    assert.equal(problems.length, 1, problems.join('\n'))
    assert.ok(problems[0]?.startsWith(`${key}: `), problems[0])
    assert.match(problems[0] ?? '', says)
  })

const SOUND: readonly [claim: string, change: Change][] = [
  ['the least configuration', {}],
  [
    'two instances with IDs of their own',
    {
      services: [
        { name: 'a', id: 'a-1', port: 1 },
        { name: 'a', id: 'a-2', port: 2 },
      ],
    },
  ],
  [
    'two applications on one port',
    {
      services: [
        { name: 'a', port: 80 },
        { name: 'b', port: 80 },
      ],
    },
  ],
  [
    'an application and an upstream on one port of different addresses',
    {
      services: [
        {
          name: 'a',
          port: 80,
          address: '10.0.0.1',
          upstreams: [{ destination: 'x', bindPort: 80 }],
        },
      ],
    },
  ],
  [
    'cgroups with a common beginning of the name',
    {
      services: [
        { name: 'a', identity: { cgroup: 'system.slice/a' } },
        { name: 'b', identity: { cgroup: 'system.slice/ab' } },
      ],
    },
  ],
  [
    'a user and a source address',
    {
      services: [
        { name: 'a', identity: { user: 'x' } },
        { name: 'b', identity: { sourceAddress: '10.9.9.9' } },
      ],
    },
  ],
  ['identities while capture is off', { services: [{ name: 'a', identity: { user: 'a' } }] }],
  ['an admin socket path that just fits', { admin: { socket: `/${'x'.repeat(106)}` } }],
  [
    'a small range of its own',
    { capture: { virtualRange: '10.99.0.0/28', virtualRange6: 'fd00::/120' } },
  ],
]

for (const [claim, change] of SOUND)
  test(`${claim} is sound`, () => {
    assert.deepEqual(problemsOf(change), [])
  })

test('metrics may go in plaintext to this host, and anywhere by TLS or when that is asked for', () => {
  for (const otlp of [
    { endpoint: 'http://127.0.0.1:4318' },
    { endpoint: 'http://[::1]:4318/otlp' },
    { endpoint: 'http://localhost:4318' },
    { endpoint: 'https://collector.example' },
    { endpoint: 'http://collector.example:4318', insecure: true },
  ])
    assert.deepEqual(problemsOf({ metrics: { otlp } }), [], otlp.endpoint)
})

test('all problems of a configuration are reported, not the first', () => {
  const problems = problemsOf({
    certificates: { kind: 'consul' },
    services: [{ name: 'a' }, { name: 'a', port: 15_443 }],
    capture: { virtualRange: 'x' },
  })
  assert.equal(problems.length, 5, problems.join('\n'))
})

test('services with an identity get consecutive capture ports in the order of the file', () => {
  const config = configSchema.parse({
    catalog: { kind: 'file', path: '/c' },
    certificates: { kind: 'files', directory: '/d' },
    capture: { basePort: 16_000 },
    services: [
      { name: 'a', identity: { user: 7 } },
      { name: 'b', port: 80 },
      {
        name: 'c',
        port: 81,
        id: 'c-1',
        identity: { cgroup: 'x' },
        upstreams: [{ destination: 'b', bindPort: 9 }, { destination: 'd' }],
      },
    ],
  })
  assert.deepEqual(
    localServices(config).map(({ id, capturePort, selector }) => ({ id, capturePort, selector })),
    [
      { id: 'a', capturePort: 16_000, selector: { kind: 'user', user: '7' } },
      { id: 'b', capturePort: undefined, selector: undefined },
      { id: 'c-1', capturePort: 16_001, selector: { kind: 'cgroup', path: 'x' } },
    ],
  )
  assert.deepEqual(localServices(config)[2]?.upstreams, [
    { destination: 'b', bind: { ip: '127.0.0.1', port: 9 } },
    { destination: 'd', bind: undefined },
  ])
})

test('the resolver runs when capture is on, unless it is told otherwise', () => {
  const isOn = (change: Change): boolean =>
    isDnsOn(
      configSchema.parse({
        catalog: { kind: 'file', path: '/c' },
        certificates: { kind: 'files', directory: '/d' },
        ...change,
      }),
    )
  assert.equal(isOn({ capture: { mode: 'on' } }), true)
  assert.equal(isOn({}), false)
  assert.equal(isOn({ dns: { mode: 'on' } }), true)
  assert.equal(isOn({ dns: { mode: 'off' }, capture: { mode: 'on' } }), false)
})

test('the service that unknown callers are taken for needs nothing else, and has a capture port', () => {
  const change: Change = {
    services: [{ name: 'web', identity: { user: 33 } }, { name: 'host' }],
    capture: { mode: 'on', basePort: 100, unknownCallers: 'host' },
  }
  assert.deepEqual(problemsOf(change), [])
  assert.deepEqual(problemsOf({ ...change, services: [{ name: 'host' }] }), [])
  const config = configSchema.parse({
    catalog: { kind: 'file', path: '/c' },
    certificates: { kind: 'files', directory: '/d' },
    ...change,
  })
  assert.deepEqual(
    localServices(config).map(({ name, capturePort }) => [name, capturePort]),
    [
      ['web', 100],
      ['host', 101],
    ],
  )
})

test('capture without a workload is no mistake and worth a word: the last one may go by a reload', () => {
  const change: Change = { capture: { mode: 'on' }, services: [{ name: 'a', port: 1 }] }
  assert.deepEqual(problemsOf(change), [])
  const warned = (capture: ConfigInput['capture']): string =>
    configWarnings(
      configSchema.parse({
        catalog: { kind: 'file', path: '/c' },
        certificates: { kind: 'files', directory: '/d' },
        ...change,
        capture,
      }),
    ).join()
  assert.match(warned({ mode: 'on' }), /no service has an identity: nothing is captured/)
  assert.equal(warned({ mode: 'on', unknownCallers: 'a' }), '')
  assert.equal(warned({ mode: 'off' }), '')
})
