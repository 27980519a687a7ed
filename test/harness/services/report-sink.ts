/** Takes reports as an aggregator does, and prints each as one line: `report-sink.ts PORT`. */
import { createServer } from 'node:http'

const last = new Map<string, number>()

createServer((request, response) => {
  const chunks: Buffer[] = []
  request.on('data', (chunk: Buffer) => chunks.push(chunk))
  request.on('end', () => {
    const text = Buffer.concat(chunks).toString()
    const { run, records } = JSON.parse(text)
    const accepted = Math.max(last.get(run) ?? 0, records.at(-1)?.sequence ?? 0)
    last.set(run, accepted)
    process.stdout.write(`${text}\n`)
    response.end(JSON.stringify({ accepted }))
  })
}).listen(Number(process.argv[2]), '127.0.0.1')
