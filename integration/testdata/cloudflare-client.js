// Calls Cloudflare's TypeScript SDK for a test. The argument holds the options of
// the client. Each line of the input is a call: its name, such as "keys.create"
// for client.stream.keys.create, and its arguments. Each line of the output is
// what came of one. Lists are iterated to their end, as the SDK's own examples
// do.

const Cloudflare = require("cloudflare")
const { createInterface } = require("readline")

const client = new Cloudflare(JSON.parse(process.argv[2]))

async function call([name, ...args]) {
  const path = name.split(".")
  const method = path.pop()
  const resource = path.reduce((parent, child) => parent[child], client.stream)
  const answer = resource[method](...args)
  if (!answer[Symbol.asyncIterator]) {
    return answer
  }
  const list = []
  for await (const item of answer) {
    list.push(item)
  }
  return list
}

async function outcome(line) {
  try {
    return { result: await call(JSON.parse(line)) }
  } catch (error) {
    if (!(error instanceof Cloudflare.APIError)) {
      throw error
    }
    return { error: { class: error.constructor.name, status: error.status, errors: error.errors } }
  }
}

async function main() {
  for await (const line of createInterface({ input: process.stdin })) {
    console.log(JSON.stringify(await outcome(line)))
  }
}

main()
