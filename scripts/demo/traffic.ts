/**
 * What the services of the demo say to each other, with the ordinary clients: curl, redis-cli, psql.
 */
import type { CommandResult } from '../../test/harness/owned-process.ts'
import type { Service } from '../../test/harness/service.ts'
import { DATABASE_USER } from './applications.ts'

/** Where a service is called: a real address, a virtual one, or a local upstream port. */
export interface Target {
  readonly ip: string
  readonly port: number
}

/** One request each by HTTP, Redis and PostgreSQL that carries `text` there and back. @throws if any fails. */
export async function carryText(
  caller: Service,
  targets: { readonly pages: Target; readonly cache: Target; readonly orders: Target },
  text: string,
): Promise<readonly string[]> {
  const page = await curl(caller, targets.pages, `/hello?${text}`)
  await redis(caller, targets.cache, ['SET', 'note', text])
  const note = await redis(caller, targets.cache, ['GET', 'note'])
  const row = await psql(caller, targets.orders, `select '${text}'`)
  return [page, note, row].map((answer) => succeed(answer).stdout.trim())
}

/** The times of many requests by one client over one connection, milliseconds. */
export async function timeHttp(
  caller: Service,
  target: Target,
  count: number,
): Promise<readonly number[]> {
  const url = `http://${target.ip}:${target.port}/item/[1-${count}]`
  const argv = ['curl', '--silent', '--show-error', '--fail', '--max-time', '30']
  const { stdout } = succeed(
    await caller.exec([...argv, '--output', '/dev/null', '--write-out', '%{time_total}\n', url]),
  )
  return stdout
    .trim()
    .split('\n')
    .map((line) => Number(line) * 1000)
}

/** Many times INCR over one connection; returns the last answer. */
export async function countInRedis(
  caller: Service,
  target: Target,
  count: number,
): Promise<number> {
  const answer = await redis(caller, target, ['-r', String(count), 'INCR', 'visits'])
  return Number(succeed(answer).stdout.trim().split('\n').at(-1))
}

/** The times of many single-row queries over one connection, milliseconds. */
export async function timeSql(
  caller: Service,
  target: Target,
  count: number,
): Promise<readonly number[]> {
  const queries = Array.from({ length: count }, (_, i) => `select ${i} * 2`)
  const { stdout } = succeed(await psql(caller, target, '\\timing on', ...queries))
  return [...stdout.matchAll(/^Time: ([\d.]+) ms/gm)].map(([, ms]) => Number(ms))
}

/** One HTTP request. */
export function curl(caller: Service, target: Target, path: string): Promise<CommandResult> {
  const url = `http://${bracketed(target.ip)}:${target.port}${path}`
  return caller.exec(['curl', '--silent', '--show-error', '--fail', '--max-time', '10', url])
}

/** One redis-cli command line. */
export function redis(
  caller: Service,
  target: Target,
  words: readonly string[],
): Promise<CommandResult> {
  return caller.exec(['redis-cli', '-h', target.ip, '-p', String(target.port), ...words])
}

/** One SQL statement, answered without decoration. */
function psql(caller: Service, target: Target, ...sql: string[]): Promise<CommandResult> {
  return caller.exec(
    [
      'psql',
      '--no-psqlrc',
      '--quiet',
      '--tuples-only',
      '--no-align',
      '--host',
      target.ip,
      '--port',
      String(target.port),
      '--username',
      DATABASE_USER,
      '--dbname',
      'postgres',
      ...sql.flatMap((statement) => ['--command', statement]),
    ],
    { PGCONNECT_TIMEOUT: '10', PGSSLMODE: 'disable' },
  )
}

/** @throws with what the program said, unless it succeeded. */
function succeed(result: CommandResult): CommandResult {
  if (result.code !== 0)
    throw new Error(`A client failed with ${result.code}: ${result.stderr || result.stdout}`)
  return result
}

function bracketed(ip: string): string {
  return ip.includes(':') ? `[${ip}]` : ip
}
