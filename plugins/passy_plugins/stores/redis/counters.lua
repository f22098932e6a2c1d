-- Decides a batch of operations at one moment of this server's clock.
--
-- KEYS are the counters that the operations name by number. ARGV[1] holds the operations, packed as
-- `script.py` writes them: first a moment in microseconds (0: this server's own clock rules), then
-- one after the other. The reply is one string of doubles: of each take whether it was admitted (1),
-- refused (0) or meets an allowance that was never counted (2), then three numbers for each claim:
-- what remains, microseconds until the counter is full again, and until the claim would be admitted.
--
-- All numbers are doubles; `script.py` chooses units in which whole numbers stay below 2^53, so that
-- nothing is ever rounded. Whatever is written expires.

local read, pack, call = struct.unpack, struct.pack, redis.call
local floor, ceil, max, min, huge = math.floor, math.ceil, math.max, math.min, math.huge

local TAKE, SETTLE, SETTLE_AGAIN, PRIME, RENEW, ATTEMPT = 1, 2, 3, 4, 5, 6
local RATE, SLOTS, ALLOWANCE = 1, 2, 3
local LONGEST_QUEUE, SLOT_RETRY = 120e6, 1e6
local SECOND, HOUR, DAY = 1e6, 3600e6, 86400e6

local input = ARGV[1]
local now, at = read('<d', input)
local spare = HOUR -- Keys expire by this server's clock, whoever's rules.
if now == 0 then
  local time = call('TIME')
  now, spare = time[1] * 1000000 + time[2], SECOND
end
local reply = {}

local function milliseconds(microseconds)
  return ceil((microseconds + spare) / 1000)
end

-- Rates: what is owed, and when it was owed so much, in the bucket's own units and ticks.

local rates = {}

local function rate(claim)
  local price, speed, tick = claim.a, claim.b, claim.c
  local one = rates[claim.key]
  if not one then
    one = {debt = 0, promised = 0, price = price, speed = speed, tick = tick}
    local kept = call('GET', KEYS[claim.key])
    if kept then
      local since
      one.debt, since, one.promised, one.price, one.speed, one.tick = read('<dddddd', kept)
      -- A clock that was set back refills nothing.
      local passed = max(0, floor(now / one.tick) - since)
      one.debt = max(0, one.debt - passed * one.speed)
      one.kept = true
    end
    rates[claim.key] = one
  end
  if one.price ~= price or one.speed ~= speed or one.tick ~= tick then
    -- Another limit than the one so far: what was used stays used.
    one.debt = ceil(one.debt * price / one.price)
    one.price, one.speed, one.tick, one.promised = price, speed, tick, 0
  end
  return one
end

local function wait(one, claim)
  local price, full, speed, tick = claim.cost * one.price, claim.d, one.speed, one.tick
  if price > full or speed == 0 then return huge end
  local due = (floor(now / tick) + ceil((price + one.debt - full) / speed)) * tick
  if one.promised > now then
    local behind = one.promised + ceil(price / speed) * tick
    due = max(due, min(behind, now + LONGEST_QUEUE))
  end
  one.promised = due
  return due - now
end

local function until_full(one)
  if one.debt == 0 or one.speed == 0 then return 0 end
  return ceil(one.debt / one.speed) * one.tick - now % one.tick
end

local function keep_rates()
  for key, one in pairs(rates) do
    local lasts = max(until_full(one), one.promised - now)
    if lasts > 0 then
      local state = pack('<dddddd', one.debt, floor(now / one.tick), one.promised,
        one.price, one.speed, one.tick)
      call('SET', KEYS[key], state, 'PX', milliseconds(lasts))
    elseif one.kept then
      call('DEL', KEYS[key])
    end
  end
end

-- Concurrency: one lease per piece, by the moment at which it ends.

local slots = {}

local function held(claim)
  local count = slots[claim.key]
  if not count then
    count = call('ZCOUNT', KEYS[claim.key], string.format('(%.0f', now), '+inf')
    slots[claim.key] = count
  end
  return count
end

local function lease_slots(claim, token)
  local key, ends = KEYS[claim.key], now + claim.b
  call('ZREMRANGEBYSCORE', key, '-inf', now)
  for piece = 1, claim.cost do
    call('ZADD', key, ends, token .. claim.number .. ':' .. piece)
  end
  call('PEXPIRE', key, milliseconds(claim.b))
end

local function free_slots(claim, token)
  for piece = 1, claim.cost do
    local freed = call('ZREM', KEYS[claim.key], token .. claim.number .. ':' .. piece)
    if slots[claim.key] then slots[claim.key] = slots[claim.key] - freed end
  end
end

-- Allowances: what is settled, what is open, when the window ends, and when it was last touched; in
-- the key behind it the leases of what is open. It knows one window, that which ends last.

local allowances = {}

local function cost_of(lease)
  return tonumber(string.match(lease, '%d+$'))
end

local function lease_of(claim, token)
  return token .. claim.number .. ':' .. string.format('%.0f', claim.cost)
end

local function allowance(claim)
  local one = allowances[claim.key]
  if one then return one end
  one = {settled = 0, open = 0, ends = -huge, touched = now, leases = KEYS[claim.key + 1]}
  local kept = call('GET', KEYS[claim.key])
  if kept then
    one.settled, one.open, one.ends, one.touched = read('<dddd', kept)
    for _, lease in ipairs(call('ZRANGEBYSCORE', one.leases, '-inf', now)) do
      call('ZREM', one.leases, lease)
      one.open = one.open - cost_of(lease)
      one.changed = true
    end
  end
  allowances[claim.key] = one
  return one
end

local function lease_allowance(claim, token)
  local one = allowance(claim)
  local added = call('ZADD', one.leases, now + claim.c, lease_of(claim, token))
  call('PEXPIRE', one.leases, milliseconds(DAY))
  return added
end

local function settle_allowance(claim, token, again)
  local one = allowance(claim)
  local spent = claim.used < 0 and claim.cost or claim.used
  if call('ZREM', one.leases, lease_of(claim, token)) == 1 then
    one.open = one.open - claim.cost
  elseif again or claim.d ~= one.ends then
    return -- It was run before, or is of a window that is over: the books know it.
  end
  one.settled, one.touched, one.changed = one.settled + spent, now, true
end

local function prime(claim)
  local one, quiet = allowance(claim), claim.cost
  if one.ends < claim.d then
    call('DEL', one.leases)
    one.settled, one.open, one.ends, one.touched = claim.used, 0, claim.d, now
  elseif one.ends == claim.d and (claim.used > one.settled or now - one.touched > quiet) then
    one.settled = claim.used
  end
  one.changed = true
end

local function keep_allowances()
  for key, one in pairs(allowances) do
    if one.changed then
      -- Past its window it is kept for those whose clock is late; an idle one is primed again.
      local lasts = min(max(one.ends - now, 0) + HOUR, DAY)
      local state = pack('<dddd', one.settled, one.open, one.ends, one.touched)
      call('SET', KEYS[key], state, 'PX', milliseconds(lasts))
    end
  end
end

-- Takes

local function fits(claim)
  if claim.kind == RATE then
    return rate(claim).debt + claim.cost * claim.a <= claim.d
  elseif claim.kind == SLOTS then
    return held(claim) + claim.cost <= claim.a
  end
  return claim.b == 0 or allowance(claim).settled + allowance(claim).open + claim.cost <= claim.a
end

local function add(claim, cost)
  if claim.kind == RATE then
    local one = rate(claim)
    one.debt = one.debt + cost * claim.a
  elseif claim.kind == SLOTS then
    slots[claim.key] = held(claim) + cost
  else
    local one = allowance(claim)
    one.open, one.touched, one.changed = one.open + cost, now, true
  end
end

local function room(claim)
  if claim.kind == RATE then
    local one = rate(claim)
    return max(0, floor((claim.d - one.debt) / claim.a)), until_full(one)
  elseif claim.kind == SLOTS then
    return max(0, claim.a - held(claim)), 0
  end
  return max(0, claim.a - allowance(claim).settled - allowance(claim).open), 0
end

local function retry(claim)
  if fits(claim) then return 0 end
  if claim.kind == RATE then return wait(rate(claim), claim) end
  return claim.kind == SLOTS and claim.cost <= claim.a and SLOT_RETRY or huge
end

local function unknown(claims)
  local found = false
  for _, claim in ipairs(claims) do
    if claim.kind == ALLOWANCE and allowance(claim).ends < claim.d then found = true end
  end
  if not found then return false end
  reply[#reply + 1] = pack('<d', 2)
  for _, claim in ipairs(claims) do
    local known = claim.kind ~= ALLOWANCE or allowance(claim).ends >= claim.d
    reply[#reply + 1] = pack('<ddd', known and 1 or 0, 0, 0)
  end
  return true
end

-- An attempt is a take of one who does not wait: nothing is promised to it.
local function take(claims, token, promised)
  if unknown(claims) then return end
  local rooms = {pack('<d', 1)}
  for number, claim in ipairs(claims) do
    if not fits(claim) then
      for before = 1, number - 1 do add(claims[before], -claims[before].cost) end
      rooms = {pack('<d', 0)}
      for _, each in ipairs(claims) do
        local remains, reset = room(each)
        rooms[#rooms + 1] = pack('<ddd', remains, reset, promised and retry(each) or huge)
      end
      reply[#reply + 1] = table.concat(rooms)
      return
    end
    add(claim, claim.cost)
    local remains, reset = room(claim)
    rooms[#rooms + 1] = pack('<ddd', remains, reset, 0)
  end
  for _, claim in ipairs(claims) do
    if claim.kind == SLOTS then
      lease_slots(claim, token)
    elseif claim.kind == ALLOWANCE then
      lease_allowance(claim, token)
    end
  end
  reply[#reply + 1] = table.concat(rooms)
end

local function settle(claim, token, again)
  if claim.kind == SLOTS then
    free_slots(claim, token)
  elseif claim.kind == ALLOWANCE then
    settle_allowance(claim, token, again)
  else
    local one, unused = rate(claim), (claim.cost - claim.used) * claim.a
    if unused < 0 then
      one.debt = min(one.debt - unused, 2 * claim.d)
    else
      one.debt = max(0, one.debt - unused)
      if one.promised > 0 then
        one.promised = one.promised - ceil(unused / max(one.speed, 1)) * one.tick
      end
    end
  end
end

local function renew(claim, token)
  if claim.kind == SLOTS then
    lease_slots(claim, token)
    slots[claim.key] = nil
  elseif claim.kind == ALLOWANCE and lease_allowance(claim, token) == 1 then
    add(claim, claim.cost) -- It had been given back, and its taker is there after all.
  end
end

local operation, token, count
while at <= #input do
  operation, token, count, at = read('<Bc16B', input, at)
  local claims = {}
  for number = 1, count do
    local claim = {}
    claim.kind, claim.number, claim.key, claim.cost, claim.used, claim.a, claim.b, claim.c, claim.d, at =
      read('<BBHdddddd', input, at)
    claims[number] = claim
  end
  if operation == TAKE or operation == ATTEMPT then
    take(claims, token, operation == TAKE)
  else
    for _, claim in ipairs(claims) do
      if operation == PRIME then
        prime(claim)
      elseif operation == RENEW then
        renew(claim, token)
      else
        settle(claim, token, operation == SETTLE_AGAIN)
      end
    end
  end
end
keep_rates()
keep_allowances()
return table.concat(reply)
