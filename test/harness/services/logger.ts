/**
 * A process that logs when it is asked to, in its main thread and in a worker thread, as the daemon does.
 * Started with the log's format; asked over its IPC channel with a number of lines.
 */
import { once } from 'node:events'
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { createLog, type LogOptions } from '../../../src/lib/log.ts'

/** What it answers: lines lost so far in each thread. */
export interface Lost {
  readonly main: number
  readonly worker: number
}

const format = isMainThread ? process.argv[2] : workerData
const options: LogOptions = { level: 'info', format: format === 'text' ? 'text' : 'json' }
let lost = 0
const log = createLog(options, () => {
  lost += 1
}).child(isMainThread ? 'main' : 'worker')

/** Every line has a message of its own, because equal ones are limited. */
let next = 0
function writeLines(count: number): void {
  for (let i = 0; i < count; i += 1) {
    log.info(`line ${next}`, { padding: 'x'.repeat(100) })
    next += 1
  }
}

if (isMainThread) {
  const worker = new Worker(import.meta.filename, { workerData: format })
  process.on('message', (count: number) => {
    void (async () => {
      worker.postMessage(count)
      writeLines(count)
      const [workerLost] = (await once(worker, 'message')) as [number]
      process.send?.({ main: lost, worker: workerLost } satisfies Lost)
    })()
  })
  process.on('disconnect', () => process.exit(0))
} else {
  parentPort?.on('message', (count: number) => {
    writeLines(count)
    parentPort?.postMessage(lost)
  })
}
