# Sends by pg (gem install pg). PGHOST, PGUSER and the like say where to:
#
#   ruby sender.rb org_1 4200
require 'json'
require 'pg'

def pay(connection, organization, amount)
  connection.transaction do # an exception rolls back: the event goes with the payment
    payment = connection.exec_params(
      'INSERT INTO payments (organization_id, amount) VALUES ($1, $2) RETURNING id', [organization, amount]
    ).getvalue(0, 0)
    connection.exec_params(
      'INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES ($1, $2, $3)',
      [organization, 'payment.succeeded', JSON.generate(paymentId: Integer(payment), amount: amount, currency: 'EUR')]
    )
    taken = connection.exec_params(
      'UPDATE accounts SET balance = balance - $2 WHERE organization_id = $1 AND balance >= $2', [organization, amount]
    )
    raise 'the account has not enough' if taken.cmd_tuples.zero?
  end
end

organization, amount = ARGV
connection = PG.connect
begin
  pay(connection, organization, Integer(amount))
ensure
  connection.close
end
