<?php
// A receiver with a table in SQLite. A request cannot work on after its answer, so that is another process. From the root of
// the repository, the two of them (in production the first is PHP-FPM's):
//
//   WEBHOOK_SECRETS=whsec_… php -S 0.0.0.0:3000 examples/receivers/receiver.php
//   php examples/receivers/receiver.php
declare(strict_types=1);

const MAX_BODY = 1 << 20; // bytes; walhook sends 256 KiB of payload at most, and little around it
const TOLERANCE = 300; // seconds that webhook-timestamp may be off
const BASE64 = '~\A(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\z~';
// work_at is when to work on it; null: done. Keep what is done for 30 days: so long walhook can send it again.
const TABLE = 'CREATE TABLE IF NOT EXISTS received (delivery_id TEXT PRIMARY KEY, body TEXT, received_at INTEGER, work_at INTEGER)';

function connect(): PDO
{
    $db = new PDO('sqlite:' . (getenv('WEBHOOK_STORE') ?: 'webhooks.sqlite'), options: [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
    $db->exec('PRAGMA busy_timeout = 5000'); // the other process writes, too
    $db->exec(TABLE);
    return $db;
}

// The key of Standard Webhooks: strip whsec_ and decode base64. A secret that is not base64 is its own key.
function standardKey(string $secret): string
{
    $text = preg_replace('/\Awhsec_/', '', $secret);
    return $text !== '' && preg_match(BASE64, $text) ? base64_decode($text) : $secret;
}

function verified(string $body): bool
{
    $secrets = array_filter(explode(',', getenv('WEBHOOK_SECRETS') ?: '')); // during a rotation: the old and the new one
    $sent = $_SERVER['HTTP_WEBHOOK_TIMESTAMP'] ?? '';
    if (!preg_match('/\A\d{1,12}\z/', $sent) || abs(time() - (int) $sent) > TOLERANCE) {
        return false;
    }
    $signed = ($_SERVER['HTTP_WEBHOOK_ID'] ?? '') . ".$sent.$body";
    foreach ($secrets as $secret) {
        $want = 'v1,' . base64_encode(hash_hmac('sha256', $signed, standardKey($secret), true));
        foreach (explode(' ', $_SERVER['HTTP_WEBHOOK_SIGNATURE'] ?? '') as $given) {
            if (hash_equals($want, $given)) {
                return true;
            }
        }
    }
    return false;
}

function receive(): int
{
    $body = file_get_contents('php://input', length: MAX_BODY + 1); // the raw bytes: json_decode and json_encode would change them
    if (strlen($body) > MAX_BODY) {
        return 413;
    }
    if (!verified($body)) {
        return 401;
    }
    connect()->prepare('INSERT INTO received VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING')
        ->execute([$_SERVER['HTTP_WEBHOOK_ID'], $body, time(), time()]); // the id is signed, unlike X-Webhook-Delivery-ID
    return 204; // an exception in front of it becomes 500, and walhook tries again
}

function work(object $event): void
{
    sleep((int) getenv('WORK_SECONDS')); // yours takes its time here
    echo "received $event->event of $event->organizationId: ", json_encode($event->data), "\n";
}

// A crash between work and UPDATE does the work twice: give it the delivery's id.
function workOff(PDO $db): never
{
    for (;;) {
        $due = $db->query('SELECT delivery_id, body FROM received WHERE work_at <= ' . time() . ' ORDER BY work_at, rowid LIMIT 1')->fetch();
        if ($due === false) {
            usleep(200_000);
            continue;
        }
        $again = null;
        try {
            work(json_decode($due['body'], flags: JSON_THROW_ON_ERROR));
        } catch (Throwable $error) {
            fwrite(STDERR, "$error\n");
            $again = time() + 60; // meanwhile the others
        }
        $db->prepare('UPDATE received SET work_at = ? WHERE delivery_id = ?')->execute([$again, $due['delivery_id']]);
    }
}

if (PHP_SAPI === 'cli') {
    workOff(connect());
}
ini_set('display_errors', '0'); // where they are shown, as without a php.ini, PHP answers them with 200
http_response_code(receive());
