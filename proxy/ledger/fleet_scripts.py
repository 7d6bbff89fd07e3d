"""What is kept at the server of a fleet, and the scripts that change it in one piece.

    imap-porter:user:NAME    a hash: `@backend` where he lives, or was last; of each proxy that has sessions of his, by
                             its name, how many, and how many of those count; `@left`, when the last one of a proxy
                             ended, and `@sticky`, whether he may go back there: of use when he has none any more
    imap-porter:members      a hash: when each proxy was last heard of
    imap-porter:instances    a hash: which run of that proxy it was
    imap-porter:here:PROXY   a set: the users who have sessions there
    imap-porter:said         a hash: what administrators say of users
    imap-porter:life         a word made up when the data began: another one means that they were lost
    imap-porter:orders       a stream: what members say to each other

What a proxy says of its own sessions is absolute, never a difference, so that saying it twice does no harm. What a dead
proxy has said does not count. All times are the server's.
"""

from __future__ import annotations

from typing import Final

PREFIX: Final = "imap-porter:"
MEMBERS: Final = PREFIX + "members"
INSTANCES: Final = PREFIX + "instances"
SAID: Final = PREFIX + "said"
LIFE: Final = PREFIX + "life"
ORDERS: Final = PREFIX + "orders"
USER: Final = PREFIX + "user:"
HERE: Final = PREFIX + "here:"

# Before a script that makes room: it runs even where the server has no memory left (maxmemory).
EVEN_IF_FULL: Final = "#!lua flags=allow-oom\n"

# Keys: user, members, here. Arguments: member, name, backend, sessions, how many count, the most that may count (-1:
# no matter), firm (1, or when he left: he goes there though he was elsewhere until then), seconds since he left (-1:
# nothing to remember), sticky, seconds that this is remembered, seconds that sessions are, seconds after which a silent
# member is dead. Answers: what, backend, others' sessions, how many of those count, seconds since he left, sticky, and
# of `was` when he left.
STAND: Final = """
local member, name, backend = ARGV[1], ARGV[2], ARGV[3]
local present, counted, most = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local at, left, left_text, sticky = '', nil, '', '0'
local others, others_counted, was_here, lost = 0, 0, false, false

local user = redis.call('HGETALL', KEYS[1])
for i = 1, #user, 2 do
  local field, value = user[i], user[i + 1]
  if field == '@backend' then
    at = value
  elseif field == '@left' then
    left, left_text = tonumber(value), value
  elseif field == '@sticky' then
    sticky = value
  elseif field == member then
    was_here = true
  else
    local heard = tonumber(redis.call('HGET', KEYS[2], field) or '')
    if heard and math.abs(now - heard) < tonumber(ARGV[12]) then
      local there, count = string.match(value, '^(%d+) (%d+)$')
      others, others_counted = others + (tonumber(there) or 0), others_counted + (tonumber(count) or 0)
    else
      redis.call('HDEL', KEYS[1], field)
      lost = true
    end
  end
end
if lost and others == 0 and not was_here then
  left, sticky = now, '1'
  redis.call('HSET', KEYS[1], '@left', now, '@sticky', '1')
end

if present > 0 then
  if others > 0 and at ~= backend then
    return {'elsewhere', at, others, others_counted, '0', '0'}
  end
  local remembered = left and now - left < tonumber(ARGV[10])
  local decided = ARGV[7] == '1' or (left_text ~= '' and ARGV[7] == left_text)
  if not decided and remembered and others == 0 and not was_here and at ~= backend then
    return {'was', at, 0, 0, tostring(now - left), sticky, left_text}
  end
  if most >= 0 and others_counted + counted > most then
    return {'full', at, others, others_counted, '0', '0'}
  end
  local since = '0'
  if remembered and others == 0 and not was_here and at == backend then
    since = tostring(math.max(now - left, 0.001))
  end
  redis.call('HSET', KEYS[1], '@backend', backend, member, present .. ' ' .. counted)
  redis.call('HDEL', KEYS[1], '@left', '@sticky')
  redis.call('EXPIRE', KEYS[1], ARGV[11])
  redis.call('SADD', KEYS[3], name)
  redis.call('EXPIRE', KEYS[3], ARGV[11])
  return {'in', backend, others, others_counted, since, since ~= '0' and sticky or '0'}
end

redis.call('HDEL', KEYS[1], member)
redis.call('SREM', KEYS[3], name)
local since = now - tonumber(ARGV[8])
local later = tonumber(ARGV[8]) >= 0 and (not left or since > left) and (backend ~= '' or at ~= '')
if others > 0 then
  if later and at == backend then  -- another one may tell of an earlier end later
    redis.call('HSET', KEYS[1], '@left', since, '@sticky', ARGV[9])
  end
else
  if later then
    at, left, sticky = backend ~= '' and backend or at, since, ARGV[9]
    redis.call('HSET', KEYS[1], '@backend', at, '@left', left, '@sticky', sticky)
  end
  local keep = left and math.ceil(left + tonumber(ARGV[10]) - now) or 0
  if keep > 0 then
    redis.call('EXPIRE', KEYS[1], keep)
  else
    redis.call('DEL', KEYS[1])
  end
end
return {'out', at, others, others_counted, '0', '0'}
"""

# Keys: members, instances, life. Arguments: member, instance, seconds after which a silent member is dead, seconds
# after which it is forgotten, a new life. Answers: seconds since another instance of this name was heard of ('': none
# is), life, now, whether this one was alive until now, and the members that are.
BEAT: Final = """
local member, instance = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local heard = tonumber(redis.call('HGET', KEYS[1], member) or '')
local known = redis.call('HGET', KEYS[2], member)
if heard and known and known ~= instance and math.abs(now - heard) < tonumber(ARGV[3]) then
  return {tostring(now - heard), '', tostring(now), '0'}
end
redis.call('HSET', KEYS[1], member, now)
redis.call('HSET', KEYS[2], member, instance)
redis.call('SET', KEYS[3], ARGV[5], 'NX')
local alive = heard and math.abs(now - heard) < tonumber(ARGV[3])
local answer = {'', redis.call('GET', KEYS[3]), tostring(now), alive and '1' or '0'}
local members = redis.call('HGETALL', KEYS[1])
for i = 1, #members, 2 do
  local silent = now - (tonumber(members[i + 1]) or 0)
  if math.abs(silent) < tonumber(ARGV[3]) then
    table.insert(answer, members[i])
  elseif silent > tonumber(ARGV[4]) then
    redis.call('HDEL', KEYS[1], members[i])
    redis.call('HDEL', KEYS[2], members[i])
  end
end
return answer
"""

# Keys: members, instances. Arguments: member, instance. It is gone, and its sessions with it.
LEAVE: Final = """
if redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return 1
"""

# Keys: said. Arguments: name, what was said of him. It is said no more, unless something else is by now.
FORGET: Final = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
return 1
"""
