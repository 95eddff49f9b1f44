"""
What schedulers do to the pool together, in Redis: Lua, nothing else.

Keys, all in one slot, so that scripts may make names of their own from the installation's prefix:

* `cred:{id}`, a hash: `s:{model}` is a mark (marks.py), `s:` alone one against the whole credential; `off`,
  `version`, `ok` and `failed` (counters), `error`, `limits`.
* `busy:{id}`, a sorted set: the attempts under way of a credential with `max_in_flight`, by when they count
  as lost.
* `pool:version` grows with each change that other schedulers must know; `pool:changed` is a sorted set of
  credentials by the version of their last change.
* `pool`, a channel: [version, kind, credential, scope, value]; kinds as in `Change`, and `f` for a place that
  became free.

`now` comes from the caller, so that a scheduler's view and its scripts agree on what is over.
"""

from __future__ import annotations

from typing import Final

from patchbay_gateway.kernel.redis import Script
from patchbay_gateway.scheduler.mark_rules import RULES

# Milliseconds for which an ended lease is remembered: longer than a renewal can be on its way.
_TOMBSTONE: Final = 15_000

# KEYS: epoch, journal, version of the pool, then leases to take, to renew, to end.
# ARGV: epoch, number to take, number to renew, TTL in ms, version of the caller's view, now, prefix, what is
# special (JSON or empty), a value per lease to take and to renew, then the events.
# Special: t: index of a take → {c: cap}; r: index of a renewal → {i, m, u, c, p}; e: ends with
# consequences (marks.End); l: signs of life of probes.
# A take is checked if it is special or if the caller's view is old: else nothing is known against it.
# A renewed lease that is gone (a flush, an outage) is made again if a value is given.
# Returns -1 for another epoch; else {} or six flat lists: takes that stand already with their values,
# renewals that had ended, takes refused with reason, takes that probe, changes, places counted.
APPLY: Final = Script(
    r"""
local head = redis.call('MGET', KEYS[1], KEYS[3])
if head[1] ~= ARGV[1] then return -1 end
local takes, renews, ttl, now = tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[6])
local P, x = ARGV[7], ARGV[8] ~= '' and cjson.decode(ARGV[8]) or nil
local standing, ended, refused, probes, counts = {}, {}, {}, {}, {}
"""
    + RULES
    + r"""
local function hold(id, uid) redis.call('ZADD', P .. 'busy:' .. id, now + ttl, uid) end
local function refuse(i, why)
  refused[#refused + 1] = i
  refused[#refused + 1] = why
end
local function take(i, key, value, opt)
  local stands = redis.call('GET', key)
  if stands then
    standing[#standing + 1] = i
    standing[#standing + 1] = stands
    return
  end
  local uid = string.sub(key, #P + 7)
  local id, model, version = string.match(value, '^[^\31]*\31([^\31]*)\31([^\31]*)\31?(%d*)')
  local f = redis.call('HMGET', P .. 'cred:' .. id, 'off', 'version', 's:', 's:' .. model)
  if f[1] then
    note(0, 'o', id, '', f[1])
    return refuse(i, 'DISABLED')
  end
  version = tonumber(version) or 0
  if version > 0 and f[2] and tonumber(f[2]) > version then return refuse(i, 'OUTDATED') end
  local mine = {}
  for k, scope in ipairs({'', model}) do
    local found = f[2 + k]
    if found and not (k == 2 and model == '') then
      local s = cjson.decode(found)
      local n = s.n or 0
      if s.p and s.p ~= uid and s.q > now then
        note(0, 'm', id, scope, found)
        return refuse(i, 'PROBING')
      end
      if now < s.u and (n == 0 or now < n) then
        note(0, 'm', id, scope, found)
        return refuse(i, 'COOLING')
      end
      mine[scope] = s
    end
  end
  if opt.c then
    local busy = P .. 'busy:' .. id
    redis.call('ZREMRANGEBYSCORE', busy, '-inf', now)
    local n = redis.call('ZCARD', busy)
    if n < opt.c then hold(id, uid) end
    redis.call('PEXPIRE', busy, ttl * 2)
    counts[#counts + 1] = id
    counts[#counts + 1] = math.min(n + 1, math.max(n, opt.c))
    if n >= opt.c then return refuse(i, 'BUSY') end
  end
  for scope, s in pairs(mine) do
    s.p, s.q = uid, now + ttl
    local found = cjson.encode(s)
    redis.call('HSET', P .. 'cred:' .. id, 's:' .. scope, found)
    note(0, 'm', id, scope, found)
    if probes[#probes] ~= i then probes[#probes + 1] = i end
  end
  redis.call('SET', key, value, 'PX', ttl)
end
local base, values = 3 + takes, 8 + takes
if #KEYS > base + renews then redis.call('DEL', unpack(KEYS, base + renews + 1)) end
for _, op in ipairs(x and x.e or {}) do
  local key, value = P .. 'lease:' .. op.u, nil
  if op.d then
    value = redis.call('SET', key, '', 'PX', TOMBSTONE, 'GET')
  else
    value = redis.call('GETDEL', key)
  end
  if op.y then
    local busy = P .. 'busy:' .. op.i
    if redis.call('ZREM', busy, op.u) == 1 then
      local n = redis.call('ZCOUNT', busy, '(' .. now, '+inf')
      counts[#counts + 1] = op.i
      counts[#counts + 1] = n
      if n + 1 >= op.y then
        redis.call('PUBLISH', P .. 'pool', cjson.encode({0, 'f', op.i, '', tostring(n)}))
      end
    end
  end
  if op.z or (value and value ~= '') then
    if op.x and value then
      -- The material that was refused may have been replaced since.
      local leased = tonumber(string.match(value, '\31(%d+)$') or '0')
      local newest = tonumber(redis.call('HGET', P .. 'cred:' .. op.i, 'version') or '0')
      if leased > 0 and newest > leased then op.w, op.f, op.q, op.t = nil, nil, nil, 'free' end
      if leased > 0 then op.v = leased end
    end
    settle(op)
  end
end
local r = x and x.r
for i = 1, renews do
  local key, lives = KEYS[base + i], true
  local found = redis.call('GETEX', key, 'PX', ttl)
  if not found then
    ended[#ended + 1] = i
    lives = ARGV[values + i] ~= ''
    if lives then redis.call('SET', key, ARGV[values + i], 'PX', ttl) end
  elseif found == '' then
    ended[#ended + 1] = i
    lives = false
    redis.call('PEXPIRE', key, TOMBSTONE)
  end
  local opt = r and r[tostring(i)]
  if lives and opt then
    if opt.c then
      hold(opt.i, opt.u)
      redis.call('PEXPIRE', P .. 'busy:' .. opt.i, ttl * 2)
    end
    for _, scope in ipairs({'', opt.m}) do
      local s = get(opt.i, scope)
      if s and s.p == opt.u then
        if opt.o then
          put(opt.i, scope, nil)
        else
          s.q = now + ttl
          redis.call('HSET', P .. 'cred:' .. opt.i, 's:' .. scope, cjson.encode(s))
        end
      end
    end
  end
end
-- After the ends: what they changed is unknown to the caller and free places can be taken.
local stale = #changes > 0 or (head[2] or '0') ~= ARGV[5]
local t = x and x.t
for i = 1, takes do
  local key, opt = KEYS[3 + i], t and t[tostring(i)]
  if stale or opt then
    take(i, key, ARGV[8 + i], opt or {})
  elseif not redis.call('SET', key, ARGV[8 + i], 'PX', ttl, 'NX') then
    standing[#standing + 1] = i
    standing[#standing + 1] = redis.call('GET', key)
  end
end
for i = values + renews + 1, #ARGV do redis.call('XADD', KEYS[2], '*', 'e', ARGV[i]) end
if #standing + #ended + #refused + #probes + #changes + #counts == 0 then return {} end
return {standing, ended, refused, probes, changes, counts}
""".replace("TOMBSTONE", str(_TOMBSTONE))
)

# KEYS: epoch. ARGV: epoch, version of the caller's view, now, prefix, how many credentials at most, then JSON
# or empty: marks made while Redis was away [{i, s, m: mark or nil, a: lifted at}], counters {id: [ok, failed,
# error, limits]}, ids whose places are to be counted.
# Returns -1 for another epoch, else {version read up to, whether that is all, {id, fields, …},
# {id, places, …}}.
SYNC: Final = Script(
    r"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local now, P = tonumber(ARGV[3]), ARGV[4]
"""
    + RULES
    + r"""
if ARGV[6] ~= '' then
  for _, p in ipairs(cjson.decode(ARGV[6])) do
    local s = get(p.i, p.s)
    if type(p.m) == 'table' then
      if not s or s.u < p.m.u then put(p.i, p.s, p.m) end
    elseif s and s.b < p.a then
      put(p.i, p.s, nil)
    end
  end
end
if ARGV[7] ~= '' then
  for id, c in pairs(cjson.decode(ARGV[7])) do
    local key = P .. 'cred:' .. id
    if c[1] > 0 then redis.call('HINCRBY', key, 'ok', c[1]) end
    if c[2] > 0 then redis.call('HINCRBY', key, 'failed', c[2]) end
    if c[3] ~= '' then redis.call('HSET', key, 'error', c[3]) end
    if c[4] ~= '' then redis.call('HSET', key, 'limits', c[4]) end
    redis.call('PEXPIRE', key, 2592000000)
  end
end
local busy = {}
if ARGV[8] ~= '' then
  for _, id in ipairs(cjson.decode(ARGV[8])) do
    busy[#busy + 1] = id
    busy[#busy + 1] = redis.call('ZCOUNT', P .. 'busy:' .. id, '(' .. now, '+inf')
  end
end
local version, all, states = redis.call('GET', P .. 'pool:version') or '0', 1, {}
if version ~= ARGV[2] then
  local from, limit = tonumber(ARGV[2]), tonumber(ARGV[5])
  if tonumber(version) < from then from = 0 end
  local ids = redis.call(
    'ZRANGEBYSCORE', P .. 'pool:changed', '(' .. from, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
  for i = 1, #ids, 2 do
    states[#states + 1] = ids[i]
    states[#states + 1] = redis.call('HGETALL', P .. 'cred:' .. ids[i])
  end
  if #ids == limit * 2 then version, all = ids[#ids], 0 end
end
return {tonumber(version), all, states, busy}
"""
)

# KEYS: epoch. ARGV: epoch, prefix, operation (`reset`, `off`, `on`, `version`), credential, then the model
# (reset; empty: all) or the version and `all` or empty (all marks go, not only those that it lifts).
# Returns -1 for another epoch, else the changes.
CHANGE: Final = Script(
    r"""
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return -1 end
local P, what, id, now = ARGV[2], ARGV[3], ARGV[4], 0
"""
    + RULES
    + r"""
local key = P .. 'cred:' .. id
local function each(test)
  local found = redis.call('HGETALL', key)
  for i = 1, #found, 2 do
    if string.sub(found[i], 1, 2) == 's:' and test(string.sub(found[i], 3), found[i + 1]) then
      put(id, string.sub(found[i], 3), nil)
    end
  end
end
if what == 'reset' then
  each(function(scope) return ARGV[5] == '' or scope == ARGV[5] end)
  if ARGV[5] == '' then redis.call('HDEL', key, 'error') end
elseif what == 'off' then
  redis.call('HSET', key, 'off', '1')
  publish('o', id, '', '1')
elseif what == 'on' then
  redis.call('HDEL', key, 'off')
  publish('o', id, '', '')
elseif what == 'version' then
  local version = tonumber(ARGV[5])
  if ARGV[6] == '' and version > tonumber(redis.call('HGET', key, 'version') or '0') then
    redis.call('HSET', key, 'version', ARGV[5])
    publish('v', id, '', ARGV[5])
  end
  each(function(_, value)
    local s = cjson.decode(value)
    return (s.v or 0) < version and (ARGV[6] ~= '' or s.x)
  end)
end
return changes
"""
)
