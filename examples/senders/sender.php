<?php
// Sends by PDO. PGHOST, PGUSER and the like say where to:
//
//   php sender.php org_1 4200
declare(strict_types=1);

function pay(PDO $db, string $organization, int $amount): void
{
    $db->beginTransaction();
    try {
        $insert = $db->prepare('INSERT INTO payments (organization_id, amount) VALUES (?, ?) RETURNING id');
        $insert->execute([$organization, $amount]);
        $payload = ['paymentId' => $insert->fetchColumn(), 'amount' => $amount, 'currency' => 'EUR'];
        $db->prepare('INSERT INTO webhook_outbox (organization_id, event_type, payload) VALUES (?, ?, ?)')
            ->execute([$organization, 'payment.succeeded', json_encode($payload, JSON_THROW_ON_ERROR)]);
        $take = $db->prepare('UPDATE accounts SET balance = balance - ? WHERE organization_id = ? AND balance >= ?');
        $take->execute([$amount, $organization, $amount]);
        if ($take->rowCount() === 0) {
            throw new RuntimeException('the account has not enough');
        }
        $db->commit();
    } catch (Throwable $error) {
        if ($db->inTransaction()) { // not after a COMMIT that failed
            $db->rollBack(); // the event goes with the payment
        }
        throw $error;
    }
}

pay(new PDO('pgsql:', options: [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]), $argv[1], (int) $argv[2]);
