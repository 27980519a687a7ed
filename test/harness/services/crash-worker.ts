/**
 * Makes one worker thread of a process throw, through the inspector that the process was started with: a
 * crash at a random place, without a hook in the code under test.
 * Usage: crash-worker.ts PORT NUMBER
 */
const [port, number] = [process.argv[2], Number(process.argv[3])]

interface Message {
  readonly id?: number
  readonly method?: string
  readonly params?: { readonly sessionId: string; readonly workerInfo: { readonly title: string } }
}

const listed = await fetch(`http://127.0.0.1:${port}/json/list`)
const [target] = (await listed.json()) as { webSocketDebuggerUrl: string }[]
const socket = new WebSocket(target?.webSocketDebuggerUrl ?? '')
const sessions: string[] = []
let lastId = 0

socket.addEventListener('open', () => send('NodeWorker.enable', { waitForDebuggerOnStart: false }))
socket.addEventListener('message', (event) => {
  const { method, params, id } = JSON.parse(String(event.data)) as Message
  if (method === 'NodeWorker.attachedToWorker' && params !== undefined)
    sessions.push(params.sessionId)
  // The answer to enable comes after all workers are attached.
  if (id === 1) crash(sessions[number])
})

function crash(sessionId: string | undefined): void {
  if (sessionId === undefined) throw new Error(`No worker ${number} among ${sessions.length}`)
  const expression = 'setImmediate(() => { throw new Error("a crash that a test asked for") })'
  const message = JSON.stringify({ id: 1, method: 'Runtime.evaluate', params: { expression } })
  send('NodeWorker.sendMessageToWorker', { sessionId, message })
  socket.close()
}

function send(method: string, params: object): void {
  lastId += 1
  socket.send(JSON.stringify({ id: lastId, method, params }))
}
