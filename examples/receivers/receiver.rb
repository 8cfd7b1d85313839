# A receiver with WEBrick and pg (gem install webrick pg), with a table in PostgreSQL, which PGHOST, PGUSER and the like lead
# to. From the root of the repository:
#
#   WEBHOOK_SECRETS=whsec_… ruby examples/receivers/receiver.rb
require 'json'
require 'openssl'
require 'pg'
require 'webrick'

# During a rotation: the old and the new one. With an empty one everybody could sign.
SECRETS = ENV.fetch('WEBHOOK_SECRETS', '').split(',').reject(&:empty?)
abort 'set WEBHOOK_SECRETS to the secret that webhook_create_endpoint returned' if SECRETS.empty?
MAX_BODY = 1 << 20 # bytes; walhook sends 256 KiB of payload at most, and little around it
TOLERANCE = 300 # seconds that webhook-timestamp may be off
BASE64 = %r{\A(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\z}
# work_at is when to work on it; null: done. Keep what is done for 30 days: so long walhook can send it again.
TABLE = <<~SQL
  CREATE TABLE IF NOT EXISTS received_webhooks (
      delivery_id text PRIMARY KEY, body text NOT NULL, received_at timestamptz NOT NULL DEFAULT now(), work_at timestamptz DEFAULT now())
SQL

# The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key.
def standard_key(secret)
  text = secret.delete_prefix('whsec_')
  text != '' && text.match?(BASE64) ? text.unpack1('m') : secret
end

def verified?(request, body)
  sent = request['webhook-timestamp'].to_s
  return false unless sent.match?(/\A\d{1,12}\z/) && (Time.now.to_i - sent.to_i).abs <= TOLERANCE

  signed = "#{request['webhook-id']}.#{sent}.".b + body
  SECRETS.any? do |secret|
    want = "v1,#{[OpenSSL::HMAC.digest('SHA256', standard_key(secret), signed)].pack('m0')}"
    request['webhook-signature'].to_s.split.any? { |given| OpenSSL.secure_compare(given, want) }
  end
end

def store(delivery, body)
  db = PG.connect # a pool, in an application that has one
  db.exec_params('INSERT INTO received_webhooks (delivery_id, body) VALUES ($1, $2) ON CONFLICT DO NOTHING', [delivery, body])
ensure
  db&.close
end

def work(event)
  sleep ENV.fetch('WORK_SECONDS', 0).to_f # yours takes its time here
  puts "received #{event['event']} of #{event['organizationId']}: #{JSON.generate(event['data'])}"
end

# The work and that it is done are committed together: what it writes by db is written once, whatever crashes.
def work_on_one(db)
  delivery = nil
  db.transaction do
    row = db.exec('SELECT delivery_id, body FROM received_webhooks WHERE work_at <= now() ORDER BY work_at LIMIT 1 FOR UPDATE SKIP LOCKED').first
    next false unless row

    delivery = row['delivery_id']
    work(JSON.parse(row['body']))
    db.exec_params('UPDATE received_webhooks SET work_at = NULL WHERE delivery_id = $1', [delivery])
    true
  end
rescue StandardError => e
  raise unless delivery

  warn e.full_message
  db.exec_params("UPDATE received_webhooks SET work_at = now() + interval '1 minute' WHERE delivery_id = $1", [delivery]) # meanwhile the others
  true
end

def work_off
  db = PG.connect
  loop { sleep 0.2 unless work_on_one(db) }
end

class Receiver < WEBrick::HTTPServlet::AbstractServlet
  def do_POST(request, response)
    response.status = 500 # and walhook tries again. WEBrick has 200 there, and would send it if this process ended now
    response.status = judge(request)
  rescue StandardError => e
    warn e.full_message # WEBrick would answer with it
  end

  def judge(request)
    return 413 unless (0..MAX_BODY).cover?(Integer(request['content-length'] || -1)) # the body is not read before this

    body = request.body.to_s.b # the raw bytes: parsing and printing would change them
    return 401 unless verified?(request, body)

    store(request['webhook-id'], body) # the delivery's id, which is signed, unlike X-Webhook-Delivery-ID
    204
  end
end

$stdout.sync = true
PG.connect { |db| db.exec('SET client_min_messages = warning') && db.exec(TABLE) }
server = WEBrick::HTTPServer.new(Port: ENV.fetch('PORT', 3000).to_i, AccessLog: [], Logger: WEBrick::Log.new($stderr, WEBrick::Log::WARN))
server.mount('/', Receiver)
Thread.new { server.start }.abort_on_exception = true
work_off # an exception ends the process, and does not leave it receiving without working: whoever starts it starts it again
