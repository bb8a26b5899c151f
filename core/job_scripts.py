"""The changes of a job's record, as Lua: each happens whole, or not at all, whoever else acts.

KEYS: job, lease, events, all, open, prefix of the queues. ARGV[1]: job id. Scripts run on one Redis, not on a cluster.
"""

_PRELUDE = """
local job, lease, events, all, open, queues = unpack(KEYS)
local id = ARGV[1]
local function emit(kind, data)
  redis.call('XADD', events, 'MAXLEN', '~', 20000, '*', 'type', kind, 'data', data)
end
local function set_status(status, now)
  redis.call('HSET', job, 'status', status)
  local queue = queues .. (redis.call('HGET', job, 'device') or 'auto')
  if status == 'queued' then
    redis.call('HDEL', job, 'sent_at')
    redis.call('ZADD', queue, redis.call('HGET', job, 'queue_score') or 0, id)
  else redis.call('ZREM', queue, id) end
  local ended = status == 'succeeded' or status == 'failed' or status == 'cancelled'
  if ended then
    redis.call('HSET', job, 'finished_at', now)
    redis.call('SREM', open, id)
    redis.call('DEL', lease)
  end
  emit('status', cjson.encode({status = status}))
  if ended then emit('done', cjson.encode({status = status})) end
end
local status = redis.call('HGET', job, 'status')
local publishes = redis.call('HGET', job, 'publishes') == '1'  -- when cancelled
"""

# ARGV: id, fields (JSON object), now, created score, idempotency key, its ttl, max queued
CREATE = (
    _PRELUDE
    + """
if ARGV[5] ~= '' then
  local known = redis.call('GET', ARGV[5])
  if known and redis.call('EXISTS', 'dragoman:job:' .. known) == 1 then return known end
end
local waiting = 0
for _, device in ipairs({'auto', 'cpu', 'cuda'}) do
  waiting = waiting + redis.call('ZCARD', queues .. device)
end
if waiting >= tonumber(ARGV[7]) then return 'full' end
if ARGV[5] ~= '' then redis.call('SET', ARGV[5], id, 'EX', ARGV[6]) end
for field, value in pairs(cjson.decode(ARGV[2])) do redis.call('HSET', job, field, value) end
redis.call('ZADD', all, ARGV[4], id)
redis.call('SADD', open, id)
set_status('queued', ARGV[3])
return id
"""
)

# ARGV: id, now, lease ms, device -> token, or 0 if there is nothing to claim
CLAIM = (
    _PRELUDE
    + """
if status ~= 'queued' then
  redis.call('ZREM', queues .. ARGV[4], id)
  return 0
end
redis.call('HINCRBY', job, 'attempt', 1)
local token = redis.call('HINCRBY', job, 'fence', 1)
redis.call('SET', lease, token, 'PX', ARGV[3])
redis.call('HSETNX', job, 'started_at', ARGV[2])
set_status(publishes and 'cancelling' or 'preparing', ARGV[2])
return token
"""
)

# ARGV: id, token, lease ms -> status and '1' if what was learnt is to be published, or false if the lease is lost
RENEW = (
    _PRELUDE
    + """
if redis.call('HGET', job, 'fence') ~= ARGV[2] or not status then return false end
redis.call('SET', lease, ARGV[2], 'PX', ARGV[3])
return {status, publishes and '1' or ''}
"""
)

# ARGV: id, token, now, new status or '', expected statuses (JSON), fields (JSON), event type or '', event data
WRITE = (
    _PRELUDE
    + """
if redis.call('HGET', job, 'fence') ~= ARGV[2] then return 'fenced' end
if ARGV[4] ~= '' then
  if status == ARGV[4] then return 'ok' end  -- done before; only the answer was lost on its way
  local allowed = false
  for _, s in ipairs(cjson.decode(ARGV[5])) do if s == status then allowed = true end end
  if not allowed then return status end
end
for field, value in pairs(cjson.decode(ARGV[6])) do redis.call('HSET', job, field, value) end
if ARGV[7] ~= '' then emit(ARGV[7], ARGV[8]) end
if ARGV[4] ~= '' then set_status(ARGV[4], ARGV[3]) end
return 'ok'
"""
)

# ARGV: id, token, now -> whether it was still held
RELEASE = (
    _PRELUDE
    + """
if redis.call('HGET', job, 'fence') ~= ARGV[2] or redis.call('DEL', lease) == 0 then return 0 end
redis.call('HINCRBY', job, 'fence', 1)
if status == 'cancelling' and not publishes then set_status('cancelled', ARGV[3]) return 1 end
redis.call('HINCRBY', job, 'attempt', -1)
set_status(status == 'pausing' and 'paused' or 'queued', ARGV[3])
return 1
"""
)

# ARGV: id, now, '1' to publish what was learnt -> the status it had
CANCEL = (
    _PRELUDE
    + """
if not status then return false end
local waits = status == 'queued' or status == 'paused'
local claimed = status == 'preparing' or status == 'running' or status == 'evaluating' or status == 'pausing'
-- Who said once that nothing is to be published is not overruled.
if waits or claimed then redis.call('HSET', job, 'publishes', ARGV[3])
elseif status == 'cancelling' and ARGV[3] ~= '1' then redis.call('HSET', job, 'publishes', '') end
if waits and ARGV[3] == '1' and redis.call('HEXISTS', job, 'started_at') == 1 then
  if status == 'paused' then set_status('queued', ARGV[2]) end
elseif waits then set_status('cancelled', ARGV[2])
elseif claimed then set_status('cancelling', ARGV[2]) end
return status
"""
)

# ARGV: id, now -> the status it had
PAUSE = (
    _PRELUDE
    + """
if not status then return false end
if status == 'queued' and not publishes then set_status('paused', ARGV[2])
elseif status == 'preparing' or status == 'running' then set_status('pausing', ARGV[2]) end
return status
"""
)

# ARGV: id, now -> the status it had
RESUME = (
    _PRELUDE
    + """
if status == 'paused' then set_status('queued', ARGV[2]) end
return status or false
"""
)

# ARGV: id -> the status it had
DELETE = (
    _PRELUDE
    + """
if status == 'succeeded' or status == 'failed' or status == 'cancelled' then
  redis.call('DEL', job, lease, events)
  redis.call('ZREM', all, id)
end
return status or false
"""
)

# ARGV: id, now, max attempts, claimed statuses (JSON) -> what became of it, or false
SWEEP = (
    _PRELUDE
    + """
local claimed = false
for _, s in ipairs(cjson.decode(ARGV[4])) do if s == status then claimed = true end end
if not status then redis.call('SREM', open, id) return false end
if not claimed or redis.call('EXISTS', lease) == 1 then return false end
redis.call('HINCRBY', job, 'fence', 1)
if status == 'cancelling' and not publishes then set_status('cancelled', ARGV[2]) return 'cancelled' end
if status == 'pausing' then set_status('paused', ARGV[2]) return 'paused' end
if tonumber(redis.call('HGET', job, 'attempt')) >= tonumber(ARGV[3]) then
  redis.call('HSET', job, 'error', cjson.encode({code = 'worker_lost', message =
    'the worker died or lost its connection in each of ' .. ARGV[3] .. ' attempts'}))
  set_status('failed', ARGV[2])
  return 'failed'
end
set_status('queued', ARGV[2])
return 'queued'
"""
)
