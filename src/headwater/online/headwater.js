// What a page needs to tell Headwater what people do and to ask it what to show: see docs/browser.md.
// Served without comments and without spaces beside signs (online/browser.py): a line ends a statement, and neither
// two signs of one kind nor a regular expression with a space may stand side by side.
(() => {
  const { src, dataset } = document.currentScript
  const draw = () => Array.from(crypto.getRandomValues(new Uint8Array(16)), b => (b + 256).toString(16).slice(1)).join('')

  // Reads a value, or writes or (with '') removes it. Where a browser forbids storage all lasts as long as the page.
  const keep = (area, value) => {
    try {
      const place = window[area + 'Storage']
      if (value === undefined) return place.headwater || ''
      if (!value) delete place.headwater
      else if (stores) place.headwater = value
    } catch {}
    return ''
  }

  // The visitor: an id of this browser, whether it has sent something (then a login joins it), and who logged in. What is
  // stored was stored with consent, where that is asked for.
  let [anonymous, used = ''] = keep('local').split(' ')
  let stores = anonymous || dataset.storage !== 'consent'
  anonymous ||= 'anon-' + draw()
  let user, token, sending, timer, pause = 0
  let queue = JSON.parse(keep('session') || '[]')
  const flying = new Set()
  const saveId = () => keep('local', anonymous + ' ' + used)
  const saveQueue = () => keep('session', queue[0] ? JSON.stringify(queue) : '')
  const later = ms => {
    timer ||= setTimeout(() => {
      timer = 0
      send()
    }, ms)
  }

  // `keepalive`: the request goes on when the page is left. (A beacon would, too, but it cannot carry a key.)
  const post = (path, body, keepalive) => fetch(new URL(path, src), {
    method: 'POST',
    keepalive,
    headers: { 'content-type': 'application/json', ...dataset.key && { authorization: 'Bearer ' + dataset.key } },
    body: JSON.stringify(body)
  })

  // The next entries that one call can take: a login, or events of one visitor.
  const next = () => {
    const rest = queue.filter(one => !flying.has(one))
    const first = rest[0]
    const end = rest.findIndex((one, at) => at > 49 || at && !(first.item && one.item && one.user === first.user))
    return end < 0 ? rest : rest.slice(0, end)
  }

  // Whether nothing more is to be done about `batch`. Nobody knows what became of one without an answer: it goes again,
  // and its event ids have it count once.
  const attempt = async batch => {
    batch.forEach(flying.add, flying)
    const events = batch[0].item
    const reply = await post(events ? 'events' : 'logins', events ? batch : batch[0], true).catch(() => 0)
    const answer = reply && await reply.json().catch(() => 0)
    batch.forEach(flying.delete, flying)
    if (!answer || /^(5|408|429)/.test(reply.status)) {
      pause = Math.min(2 * pause || 1e3, 6e4)
      later(Math.max(pause * (1 + Math.random()) / 2, reply && 1e3 * reply.headers.get('retry-after')))
      return
    }
    pause = 0
    token = answer.token || token
    queue = queue.filter(one => !batch.includes(one))
    saveQueue()
    if (answer.error || answer.rejected?.[0]) console.warn('headwater', answer)
    return true
  }

  const deliver = async () => {
    while (next()[0] && await attempt(next()));
  }
  const send = () => sending ||= deliver().finally(() => sending = 0)
  const leave = () => {
    saveQueue()
    while (next()[0]) attempt(next())
  }

  const track = (type, item, more) => {
    if (!user && !used) {
      used = 'used'
      saveId()
    }
    queue.push({ user: user || anonymous, item, type, event_id: draw(), ...more })
    if (queue[500]) queue.shift()
    if (queue[49] && !pause) send()
    else later(1e3)
  }

  // From now on the visitor is `id`; what was done under the anonymous id goes along.
  const identify = id => {
    user = id
    if (id && used) {
      queue.push({ anonymous, user })
      anonymous = 'anon-' + draw()
      used = ''
      saveId()
    }
    return send()
  }
  const consent = given => {
    stores = given
    if (given) saveId()
    else ['local', 'session'].forEach(area => keep(area, ''))
  }

  const recommend = async request => {
    await Promise.race([send(), new Promise(go => setTimeout(go, 1e3))])
    const reply = await post('recommend', { user: user || anonymous, token, ...request })
    const answer = await reply.json()
    if (answer.error) throw Error(answer.error.reason)
    return answer
  }

  // Impressions: half of an element was visible for a second on a page that was not hidden; once for each item and list.
  // `seen` holds the timer of an element, then what it was shown as.
  const said = (node, name) => node.closest(`[data-headwater-${name}]`)?.getAttribute('data-headwater-' + name)
  const listed = node => said(node, 'item') + ' ' + said(node, 'request')
  const tell = (type, node) => track(type, said(node, 'item'), {
    request_id: said(node, 'request'),
    surface: said(node, 'surface'),
    position: +said(node, 'position')
  })
  const seen = new WeakMap()
  const watch = new IntersectionObserver(entries => entries.forEach(({ target, intersectionRatio }) => {
    clearTimeout(seen.get(target))
    if (intersectionRatio >= .5) seen.set(target, setTimeout(() => {
      if (document.hidden) return
      watch.unobserve(target)
      seen.set(target, listed(target))
      tell('impression', target)
    }, 1e3))
  }), { threshold: .5 })
  const scan = () => document.querySelectorAll('[data-headwater-item]').forEach(node => {
    if (seen.get(node) !== listed(node)) watch.observe(node)
  })
  const clicked = ({ target, button }) => {
    if (button < 2 && said(target, 'item')) tell('click', target)
  }

  document.addEventListener('visibilitychange', () => {
    if (document.hidden) return leave()
    watch.disconnect()
    scan()
  })
  addEventListener('pagehide', leave)
  addEventListener('click', clicked, true)
  addEventListener('auxclick', clicked, true)
  new MutationObserver(scan).observe(document, { subtree: true, childList: true, attributeFilter: ['data-headwater-item'] })
  scan()
  if (queue[0]) send()
  window.headwater = { track, identify, consent, recommend, flush: send }
})()
