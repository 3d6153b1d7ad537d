// An open loop for rates that a Python process cannot keep: node flood.mjs PLAN.json OUT.csv
// PLAN: host, port, request (the bytes as text), per_s, duration_s, connections, seed. OUT: latency in ms from the scheduled
// arrival, status (0: none came) on a line for each arrival. Arrivals are Poisson; when all connections are taken, they wait.
import fs from "node:fs";
import net from "node:net";

const plan = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const request = Buffer.from(plan.request);
const idle = [], waiting = [], rows = [];
let open = 0, state = plan.seed >>> 0;

function random() { // mulberry32
  state = (state + 0x6d2b79f5) >>> 0;
  let t = Math.imul(state ^ (state >>> 15), state | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
}

function connection() {
  open += 1;
  const socket = net.connect({ host: plan.host, port: plan.port, noDelay: true });
  const mine = { socket, due: null, got: "" };
  const ended = () => {
    if (mine.gone) return;
    mine.gone = true;
    open -= 1;
    const place = idle.indexOf(mine);
    if (place >= 0) idle.splice(place, 1);
    if (mine.due !== null) answered(mine, 0);
    else if (waiting.length) ask(connection(), waiting.shift());
  };
  socket.on("data", (data) => {
    mine.got += data.toString("latin1");
    const head = mine.got.indexOf("\r\n\r\n");
    if (head < 0) return;
    const size = /\r\ncontent-length: *(\d+)/i.exec(mine.got.slice(0, head));
    if (mine.got.length < head + 4 + Number(size ? size[1] : 0)) return;
    const status = Number(mine.got.slice(9, 12));
    mine.got = "";
    answered(mine, status);
  });
  socket.on("error", ended);
  socket.on("close", ended);
  return mine;
}

function ask(mine, due) {
  mine.due = due;
  mine.socket.write(request);
}

function answered(mine, status) {
  rows.push(`${(performance.now() - mine.due).toFixed(3)},${status}`);
  mine.due = null;
  if (mine.gone) { if (waiting.length) ask(connection(), waiting.shift()); }
  else if (waiting.length) ask(mine, waiting.shift());
  else idle.push(mine);
}

function arrive(due) {
  const mine = idle.pop();
  if (mine) ask(mine, due);
  else if (open < plan.connections) ask(connection(), due);
  else waiting.push(due);
}

const start = performance.now();
let due = start, sent = 0;
function step() {
  const now = performance.now();
  while (due <= now && due - start < plan.duration_s * 1e3) {
    arrive(due);
    sent += 1;
    due += (-Math.log(1 - random()) / plan.per_s) * 1e3;
  }
  const over = due - start >= plan.duration_s * 1e3;
  const lost = now - start > plan.duration_s * 1e3 + 20_000;
  if ((over && rows.length === sent) || lost) {
    for (let n = rows.length; n < sent; n += 1) rows.push("20000,0");
    fs.writeFileSync(process.argv[3], rows.join("\n"));
    process.exit(0);
  }
  setTimeout(step, 1);
}
step();
