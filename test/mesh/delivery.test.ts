/**
 * What an application sees of a caller: the local address that it was told to expect, and with a PROXY header
 * where the call came from; read by a real nginx.
 */
import assert from 'node:assert/strict'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'

import { eventually } from '../harness/eventually.ts'
import { startMesh } from '../harness/mesh.ts'

const PORT = 8080

/** Says in one line what the header told it, and where the connection itself came from. */
function nginxConfig(folder: string, listen: string): string {
  const temporary = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map((kind) => `${kind}_temp_path ${folder}/${kind};`)
    .join(' ')
  return `daemon off; master_process off; pid ${folder}/nginx.pid; error_log stderr;
events {}
http {
  access_log off; ${temporary}
  server {
    listen ${listen};
    return 200 "$proxy_protocol_addr|$proxy_protocol_server_addr|$proxy_protocol_server_port|$remote_addr\\n";
  }
}
`
}

test('deliverFrom and proxyProtocol, from another host and from the same one', async (t) => {
  await using mesh = await startMesh({ hosts: ['a', 'b'], catalog: 'file' })
  const [a, b] = [mesh.host('a'), mesh.host('b')]
  const web = a.service('web')
  const near = b.service('near')
  const callers = [await web.start(), await near.start()]
  assert.equal(callers.length, 2)
  const api = b.service('api', {
    listens: PORT,
    delivery: { deliverFrom: '127.0.0.2', proxyProtocol: 'v2' },
  })
  const plain = b.service('plain', { listens: PORT + 1 })
  for (const [service, listen] of [
    [api, `127.0.0.1:${PORT} proxy_protocol`],
    [plain, `127.0.0.1:${PORT + 1}`],
  ] as const) {
    const folder = join(mesh.folder, `nginx-${service.name}`)
    await mkdir(folder)
    await chmod(folder, 0o777)
    await writeFile(join(folder, 'nginx.conf'), nginxConfig(folder, listen))
    await service.run(['nginx', '-e', 'stderr', '-c', join(folder, 'nginx.conf')])
    for (const caller of ['web', 'near']) await mesh.allow(caller, service.name)
  }
  await mesh.up()

  const ask = async (caller: typeof web, name: string): Promise<string[]> => {
    const { ip, port } = await mesh.virtualAddress(name, caller.host)
    const { stdout, stderr } = await caller.exec([
      'curl',
      '-sS',
      '-m',
      '5',
      `http://${ip}:${port}/`,
    ])
    assert.equal(stderr, '')
    return stdout.trim().split('|')
  }

  await t.test('a caller of another host, by its own address there', async () => {
    const { ip, port } = await mesh.virtualAddress('api', a)
    await eventually(async () =>
      assert.deepEqual(await ask(web, 'api'), [a.namespace.ip, ip, String(port), '127.0.0.2']),
    )
  })

  await t.test('a caller of the same host, by its address', async () => {
    const { ip, port } = await mesh.virtualAddress('api', b)
    const [caller = '', ...rest] = await ask(near, 'api')
    assert.match(caller, /^(\d+\.){3}\d+$/)
    assert.deepEqual(rest, [ip, String(port), '127.0.0.2'])
  })

  await t.test('without them it is 127.0.0.1, whoever calls', async () => {
    for (const caller of [web, near])
      assert.deepEqual(await ask(caller, 'plain'), ['', '', '', '127.0.0.1'])
  })
})
