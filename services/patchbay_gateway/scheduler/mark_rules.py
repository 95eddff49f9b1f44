"""
The rules of marks as Redis runs them: the Lua that scripts begin with. The same as marks.py, line by line.

Not here: the scripts, and what their keys mean (pool_scripts.py).
"""

from __future__ import annotations

from typing import Final

# Needs P (prefix), now; fills `changes`. The rules are those of marks.py.
RULES: Final = r"""
local changes = {}
local function note(v, kind, id, scope, value)
  local n = #changes
  changes[n + 1], changes[n + 2], changes[n + 3] = v, kind, id
  changes[n + 4], changes[n + 5] = scope, value
end
local function publish(kind, id, scope, value)
  local v = redis.call('INCR', P .. 'pool:version')
  redis.call('ZADD', P .. 'pool:changed', v, id)
  redis.call('PUBLISH', P .. 'pool', cjson.encode({v, kind, id, scope, value}))
  note(v, kind, id, scope, value)
end
local function get(id, scope)
  local found = redis.call('HGET', P .. 'cred:' .. id, 's:' .. scope)
  return found and cjson.decode(found) or nil
end
local function put(id, scope, s)
  local key, value = P .. 'cred:' .. id, ''
  if s then
    value = cjson.encode(s)
    redis.call('HSET', key, 's:' .. scope, value)
  else
    redis.call('HDEL', key, 's:' .. scope)
  end
  publish('m', id, scope, value)
end
local function cool(s, op)
  s = s or {u = 0}
  local u, b, l, n = s.u or 0, s.b or 0, s.l or 0, s.n or 0
  local mine = s.p == op.u
  local open = u > now
  local same = open and s.r == op.r
  local till = u
  if (op.w or 0) > 0 then
    if not same or op.a then till = math.max(till, now + op.w) end
  elseif (op.f or 0) > 0 and not same then
    if b > 0 and (op.o or 0) <= b and l > 0 then l = l - 1 end
    till = math.max(till, now + math.min(op.f * 2 ^ math.min(l, 30), op.c or 0))
    l = l + 1
  end
  if op.q then till = math.max(till, now + op.q) end
  local longer = till > u
  if not longer and not mine then return s end
  if not open then b = now end
  if longer or mine then
    n = 0
    if op.h then
      n = now + math.max(10000, math.floor((till - b) * 0.1))
      if n >= till then n = 0 end
    end
  end
  local new = {u = till, b = b, l = l, n = n, e = op.e or s.e, v = op.v or 0, r = s.r, x = s.x, g = s.g}
  if longer then new.r, new.x, new.g = op.r, op.x, op.g end
  if not mine then new.p, new.q = s.p, s.q end
  return new
end
local function survives(s, op, whole)
  if s.p == op.u then return false end
  if (op.o or 0) <= (s.b or 0) then return true end
  return whole and (s.u or 0) > now and (s.r == 'QUOTA' or s.r == 'RATE_LIMIT')
end
local function settle(op)
  local cools = (op.w or 0) > 0 or (op.f or 0) > 0 or (op.q or 0) > 0
  local scopes = op.m ~= '' and op.m and {'', op.m} or {''}
  for _, scope in ipairs(scopes) do
    local s = get(op.i, scope)
    local new, changed = s, false
    if s and op.t == 'ok' and not survives(s, op, scope == '') then
      new, changed = nil, true
    elseif s and s.p == op.u then
      new.p, new.q, changed = nil, nil, true
    end
    if cools and scope == (op.s or '') then
      -- A failed probe is a failure of this mark, so `cool` sees whose it was.
      if s and changed and op.t == 'cool' then s.p = op.u end
      local cooled = cool(new, op)
      changed, new = changed or cooled ~= new, cooled
    end
    if changed then put(op.i, scope, new) end
  end
end
"""
