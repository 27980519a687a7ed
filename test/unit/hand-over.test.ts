/** The order of a hand-over, with a daemon and a successor that write down what is asked of them. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { handOver, type Predecessor, type Successor } from '../../src/daemon/hand-over.ts'
import { errorCode } from '../../src/lib/errors.ts'

const LIMITS = { prepareMs: 50, takeOverMs: 50, signal: new AbortController().signal }
const never = new Promise<never>(() => undefined)

function script(parts: { readonly prepared?: Promise<void>; readonly takeOver?: Promise<void> }): {
  readonly incumbent: Predecessor
  readonly successor: Successor
  readonly said: string[]
} {
  const said: string[] = []
  const note = async (what: string, work: Promise<void> = Promise.resolve()): Promise<void> => {
    said.push(what)
    await work
  }
  return {
    said,
    incumbent: { release: () => note('release'), resume: () => note('resume') },
    successor: {
      prepared: async () => {
        await note('prepared', parts.prepared)
        return { pid: 42 }
      },
      takeOver: () => note('takeOver', parts.takeOver),
      end: () => note('end'),
    },
  }
}

describe('a hand-over', () => {
  test('lets go only when the successor is prepared, and has it take over only then', async () => {
    const { incumbent, successor, said } = script({})
    assert.equal(await handOver(incumbent, successor, LIMITS), 42)
    assert.deepEqual(said, ['prepared', 'release', 'takeOver'])
  })

  for (const [name, prepared] of [
    ['fails', Promise.reject(new Error('no roots'))],
    ['does not get ready', never],
  ] as const) {
    prepared.catch(() => undefined)
    test(`to one that ${name} has touched nothing`, async () => {
      const { incumbent, successor, said } = script({ prepared })
      await assert.rejects(
        handOver(incumbent, successor, LIMITS),
        (error) =>
          errorCode(error) === 'HM_RELOAD_FAILED' && /no roots|get ready/.test(String(error)),
      )
      assert.deepEqual(said, ['prepared', 'end'])
    })
  }

  for (const [name, takeOver] of [
    ['fails', Promise.reject(new Error('port 9109'))],
    ['hangs', never],
  ] as const) {
    takeOver.catch(() => undefined)
    test(`to one that ${name} halfway is taken back, after that one is gone`, async () => {
      const { incumbent, successor, said } = script({ takeOver })
      await assert.rejects(handOver(incumbent, successor, LIMITS), /port 9109|take over/)
      assert.deepEqual(said, ['prepared', 'release', 'takeOver', 'end', 'resume'])
    })
  }

  for (const [when, order] of [
    ['prepared', ['prepared', 'end']],
    ['release', ['prepared', 'release', 'end', 'resume']],
    ['takeOver', ['prepared', 'release', 'takeOver', 'end', 'resume']],
  ] as const) {
    test(`that is given up at '${when}' leaves one owner`, async () => {
      const stopping = new AbortController()
      const parts = when === 'release' ? {} : { [when]: never }
      const { incumbent, successor, said } = script(parts)
      const ended = handOver(incumbent, successor, {
        prepareMs: 60_000,
        takeOverMs: 60_000,
        signal: stopping.signal,
      })
      ended.catch(() => undefined)
      while (said.at(-1) !== when) await Promise.resolve()
      stopping.abort(new Error('the daemon was told to stop'))
      await assert.rejects(ended, /goes on as it is: the daemon was told to stop/)
      assert.deepEqual(said, order)
    })
  }
})
