// A Node HTTP server that counts, with timers, promises and file reads of the thread pool; see client.py.
const fs = require('fs/promises');
const http = require('http');

const lanes = new Map();
let ticks = 0;

(async () => {
  for (;;) {
    await new Promise((done) => setTimeout(done, 50));
    await fs.readFile('/etc/passwd');
    ticks += 1;
  }
})();

http.createServer((request, response) => {
  const count = (lanes.get(request.url) ?? 0) + 1;
  lanes.set(request.url, count);
  response.end(`${count} ${ticks}\n`);
}).listen(Number(process.argv[2]), '0.0.0.0', () => console.log('ready'));
